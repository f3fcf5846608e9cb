from __future__ import annotations

import subprocess
import sys

import pytest

from devices import catalogue
from devices.errors import DevicesError, TargetNotFoundError

CHIPS = (
    *("a100", "a100-40gb", "b200", "b300", "cpu", "gb200", "gb300", "h100", "h200", "inferentia2", "rubin"),
    *("trainium1", "trainium2", "trainium3", "trainium4"),
)
MACHINES = (
    *("dgx-a100", "gb200-nvl72-tray", "gb300-nvl72-tray", "hgx-b200", "hgx-b300", "hgx-h100", "hgx-h200"),
    *("inf2.24xlarge", "inf2.48xlarge", "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5e.48xlarge"),
    *("p5en.48xlarge", "p6-b200.48xlarge", "p6-b300.48xlarge", "p6e-gb200.36xlarge"),
    *("trainium3-gen1-machine", "trainium3-gen2-machine", "trn1.2xlarge", "trn1.32xlarge", "trn1n.32xlarge"),
    *("trn2.3xlarge", "trn2.48xlarge", "vera-rubin-nvl72-tray"),
)
ULTRASERVERS = (
    *("gb200-nvl72", "gb300-nvl72", "p6e-gb200-ultraserver", "trainium2-ultraserver", "trainium3-ultraserver-gen1"),
    *("trainium3-ultraserver-gen2", "vera-rubin-nvl72"),
)
CLUSTERS = ("project-rainier", "trainium1-ultracluster", "trainium3-ultracluster", "trainium3-ultracluster-gen1")
DOMAINS = ("trainium4-nvlink-fusion",)


def test_names_lists_the_targets_and_not_their_software() -> None:
    assert catalogue.names() == tuple(sorted(CHIPS + MACHINES + ULTRASERVERS + CLUSTERS + DOMAINS))


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        ("chip", CHIPS),
        ("machine", MACHINES),
        ("ultraserver", ULTRASERVERS),
        ("cluster", CLUSTERS),
        ("domain", DOMAINS),
    ],
)
def test_names_lists_those_of_a_kind(kind: str, listed: tuple[str, ...]) -> None:
    assert catalogue.names(kind) == listed


def test_names_of_an_unknown_kind_says_which_there_are() -> None:
    with pytest.raises(TargetNotFoundError, match="no kind of target 'machines'; did you mean 'machine'"):
        catalogue.names("machines")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("trainium5", "trainium4"), ("trn2.48xlrage", "trn2.48xlarge"), ("trainium2-ultraservr", "trainium2-ultraserver")],
)
def test_a_name_that_is_none_says_what_may_be_meant_and_where_all_are_listed(asked: str, meant: str) -> None:
    with pytest.raises(TargetNotFoundError) as caught:
        catalogue.load(asked)
    assert isinstance(caught.value, (DevicesError, LookupError))
    text = str(caught.value)
    assert f"no target named {asked!r}; did you mean '" in text
    assert meant in text
    assert text.count("' or '") <= 2
    assert f"`devices catalogue` lists all {len(catalogue.names())}" in text


def test_a_name_that_is_like_none_says_where_all_are_listed() -> None:
    with pytest.raises(TargetNotFoundError, match="no target named 'zzzzzz'; `devices catalogue` lists all"):
        catalogue.load("zzzzzz")


def test_software_is_no_target() -> None:
    with pytest.raises(TargetNotFoundError, match="no target named 'neuron'"):
        catalogue.load("neuron")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("trn2.48xl", "trn2.48xlarge"),
        ("trn2u.48xlarge", "trn2.48xlarge"),
        ("p5.48xl", "p5.48xlarge"),
        ("trn2-ultraserver", "trainium2-ultraserver"),
        ("trainium3-ultraserver", "trainium3-ultraserver-gen2"),
    ],
)
def test_a_target_goes_by_other_names(alias: str, name: str) -> None:
    assert catalogue.load(alias).name == name
    assert catalogue.load(alias) == catalogue.load(name)


def test_a_target_is_read_once() -> None:
    assert catalogue.load("trainium2") is catalogue.load("trainium2")


def test_lnc_is_part_of_what_a_device_is() -> None:
    two, one = catalogue.load("trainium2"), catalogue.load("trainium2", lnc=1)
    assert (str(two), str(one)) == ("trainium2 at LNC 2", "trainium2 at LNC 1")
    assert two != one
    assert (two.limits.ranks, one.limits.ranks) == (4, 8)
    assert two.limits.memory_per_rank == 24 * 2**30
    assert one.limits.memory_per_rank == 12 * 2**30
    assert catalogue.load("trainium2", lnc=2).limits == two.limits
    assert str(catalogue.load("h100")) == "h100"


@pytest.mark.parametrize(
    ("name", "lnc", "message"),
    [
        ("trainium2-ultraserver", 4, "LNC 4 was asked for, and trainium2 has LNC 1 and 2"),
        ("h100", 2, "LNC 2 was asked for, and h100 has no LNC"),
    ],
)
def test_an_lnc_that_the_chip_lacks_is_an_error(name: str, lnc: int, message: str) -> None:
    with pytest.raises(TargetNotFoundError, match=message):
        catalogue.load(name, lnc=lnc)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda target: target.figure("memroy"), "has no figure 'memroy'; did you mean 'memory'"),
        (lambda target: target.figure("machine.members"), "has no figure 'machine.members'"),
        (lambda target: target.provenance("max_group"), "has no limit 'max_group'; did you mean 'max_groups'"),
        (lambda target: target.count("machine"), "has no part 'machine'"),
        (lambda target: target.total("lnc"), r"has no total of 'lnc', which is \(1, 2\)"),
    ],
)
def test_what_a_target_lacks_is_an_error(ask: object, message: str) -> None:
    with pytest.raises(TargetNotFoundError, match=message):
        ask(catalogue.load("trainium2"))  # type: ignore[operator]


def test_loading_every_target_imports_no_torch() -> None:
    code = (
        "import sys; from devices import catalogue; targets = [catalogue.load(name) for name in catalogue.names()]; "
        "print(len(targets), sorted({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{len(catalogue.names())} []\n"
