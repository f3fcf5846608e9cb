from __future__ import annotations

import subprocess
import sys

import pytest

from devices import catalogue
from devices.errors import DevicesError, TargetNotFoundError

CHIPS = ("h100", "inferentia2", "trainium1", "trainium2", "trainium3")
MACHINES = (
    *("inf2.24xlarge", "inf2.48xlarge", "p5.48xlarge", "trainium3-gen1-machine", "trainium3-gen2-machine"),
    *("trn1.32xlarge", "trn2.48xlarge"),
)
ULTRASERVERS = ("trainium2-ultraserver", "trainium3-ultraserver-gen1", "trainium3-ultraserver-gen2")


def test_names_lists_the_targets_and_not_their_software() -> None:
    assert catalogue.names() == tuple(sorted(CHIPS + MACHINES + ULTRASERVERS))


@pytest.mark.parametrize(("kind", "listed"), [("chip", CHIPS), ("machine", MACHINES), ("ultraserver", ULTRASERVERS)])
def test_names_lists_those_of_a_kind(kind: str, listed: tuple[str, ...]) -> None:
    assert catalogue.names(kind) == listed


def test_names_of_an_unknown_kind_says_which_there_are() -> None:
    with pytest.raises(TargetNotFoundError, match="no kind of target 'machines'; did you mean 'machine'"):
        catalogue.names("machines")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("trainium4", "trainium2"), ("trn2.48xlrage", "trn2.48xlarge"), ("trainium2-ultraservr", "trainium2-ultraserver")],
)
def test_a_name_that_is_none_says_what_was_meant_and_what_there_is(asked: str, meant: str) -> None:
    with pytest.raises(TargetNotFoundError) as caught:
        catalogue.load(asked)
    assert isinstance(caught.value, (DevicesError, LookupError))
    text = str(caught.value)
    assert f"no target named {asked!r}; did you mean '" in text
    assert meant in text
    assert all(name in text for name in catalogue.names())


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
