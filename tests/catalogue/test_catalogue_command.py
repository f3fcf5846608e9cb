"""`devices catalogue`: the list, and all of one target, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from devices import catalogue
from devices.__main__ import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return what runs the command and gives back its exit status and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        # What pytest puts in stdout's place cannot be reconfigured on every version.
        status = main(["catalogue", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_list_has_every_target_with_kind_status_and_who_adds_it(run) -> None:  # type: ignore[no-untyped-def]
    status, out, err = run()
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ")}
    assert set(catalogue.names()) <= lines.keys()
    assert lines["trainium2"][1:3] == ["documented", "devices"]
    assert lines["rubin"][1] == "announced"
    assert lines["trainium4"][1:3] == ["speculative", "plugin"]
    for kind in ("chips", "machines", "ultraservers", "clusters", "domains"):
        assert kind in out.splitlines()


def test_the_list_as_json_can_be_of_one_kind(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("--json", "--kind", "cluster")
    assert status == 0
    found = {each["name"]: each for each in json.loads(out)}
    assert tuple(found) == catalogue.names("cluster")
    assert found["trainium3-ultracluster-gen1"] == {
        "name": "trainium3-ultracluster-gen1",
        "kind": "cluster",
        "title": "an EC2 UltraCluster of Trn3 UltraServers of the first generation",
        "status": found["trainium3-ultracluster-gen1"]["status"],
        "speculative": False,
        "from": "devices",
        "chips": 1_000_000,
    }


def test_show_prints_each_figure_with_unit_value_status_source_and_date(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("show", "trainium3")
    assert status == 0
    text = " ".join(out.split())
    assert "memory 144 GiB = 154618822656 bytes documented, 2025-12-02, AWS Neuron SDK" in text
    assert "not chosen: 4.7 TB/s = 4.7e+12 bytes/s: documented, 2026-08-21" in text
    assert "because the sums that are printed for both UltraServers" in text
    assert "links unknown the page of the chip states the bandwidth of its links and not their number" in text
    assert "energy_efficiency of trainium2 1.4 times announced, 2025-12-02" in text
    assert "max_groups 16" in text


def test_show_as_json_has_the_figures_of_the_parts_too(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("show", "trn2-ultraserver", "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["name"] == "trainium2-ultraserver"
    assert [(part["name"], part["count"]) for part in shown["made_of"]] == [("trn2.48xlarge", 4), ("trainium2", 64)]
    [network] = [
        each for each in shown["figures"] if (each["target"], each["figure"]) == (shown["name"], "nic_bandwidth")
    ]
    assert (network["value"], network["unit"], network["status"]) == (1.6e12, "bytes/s", "inferred")
    assert [other["value"] for other in network["not_chosen"]] == [4e11]
    assert network["reason"].startswith("it is four times what one machine has")
    [groups] = [each for each in shown["limits"] if each["limit"] == "max_groups"]
    assert groups["value"] == 16
    assert groups["from"][0]["source"].startswith("AWS Neuron SDK")


def test_what_is_speculative_says_so_and_shows_what_is_assumed(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("show", "trainium4-nvlink-fusion")
    assert status == 0
    text = " ".join(out.split())
    assert "status speculative: no such hardware is out" in text
    assert "made of 72 chips, trainium4 and rubin; how many are of which is not stated" in text
    assert "in_switch_reduction no (of no, yes)" in text
    assert "if wrong an all-reduce moves about half as much" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "trainum3"), "no target named 'trainum3'; did you mean 'trainium3'"),
        (("trainium3",), "`devices catalogue show trainium3` prints that target"),
        (("shwo", "trainium3"), "did you mean 'show'?"),
        (("show",), "`show` takes the name of one target, and got 0"),
        (("show", "a100", "h100"), "`show` takes the name of one target, and got 2"),
        (("--kind", "chpi"), "no kind of target 'chpi'; did you mean 'chip'?"),
        (("show", "a100", "--lnc", "2"), "LNC 2 was asked for, and a100 has no LNC"),
        (("--lnc", "2"), "--lnc goes with `show NAME`"),
        (("show", "a100", "--kind", "chip"), "--kind goes with the list"),
    ],
)
def test_what_cannot_be_shown_says_why(run, arguments: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("devices catalogue: ")
    assert says in err
