"""How much of what crosses each rank carries, and how long that is said to take."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore

from devices._backend import Device, Group
from devices._store import Store
from devices.algorithms import ring
from devices.algorithms.planned import Planned
from devices.domains import bandwidth
from devices.domains.members import Domains
from devices.domains.predicted import between_domains, of_topology, on_this_host, seconds, told
from devices.domains.shares import Shares
from devices.errors import ArgumentError
from devices.topology import Calibration, of_target, predict
from devices.topology.calibration import Knot, write_calibration
from devices.topology.estimate import duration

TWO_AND_TWO = Domains(((0, 1), (2, 3)), ("here", "there"))


def test_parts_are_as_the_links_of_a_domains_ranks() -> None:
    shares = Shares(TWO_AND_TWO, [4e9, 1e9, 1e9, 1e9])
    assert shares.cuts(0, 1000) == (0, 800, 1000)
    assert shares.cuts(1, 1000) == (0, 500, 1000)
    assert [ranks for ranks, _ in shares.lanes(1000)] == [(0, 0), (0, 1), (1, 1)]
    assert [(cuts[0], cuts[-1]) for _, cuts in shares.lanes(1000)] == [(0, 500), (500, 800), (800, 1000)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1001])
def test_each_element_is_someones_however_few_there_are(length: int) -> None:
    shares = Shares(Domains(((0, 1, 2), (3,)), ("here", "there")), [1e9, 8e9, 3e9, 5e9])
    for domain, count in ((0, 3), (1, 1)):
        cuts = shares.cuts(domain, length)
        assert len(cuts) == count + 1
        assert list(cuts) == sorted(cuts)
        assert (cuts[0], cuts[-1]) == (0, length)
    ends = [(cuts[0], cuts[-1]) for _, cuts in shares.lanes(length)]
    assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
    assert ends[-1][1] == length


def test_predicted_times_are_what_must_cross_over_what_the_links_carry() -> None:
    # 100 MB; 125 MB/s into and out of each domain, of which one rank has a fifth.
    found = seconds(100_000_000, TWO_AND_TWO, [100e6, 25e6, 100e6, 25e6])
    assert found == pytest.approx(
        {"all_reduce": 0.8, "all_gather": 0.4, "reduce_scatter": 0.4, "broadcast": 0.8, "all_to_all": 0.8}
    )


def test_times_between_domains_are_intervals_or_say_which_figure_is_missing() -> None:
    said = between_domains(TWO_AND_TWO, [100e6, 25e6, 100e6, 25e6])
    # 64 MiB at 125 MB/s take 0.5369 s at best.
    assert said.startswith("predicted for 64 MiB: all_reduce 564 ms (510 ms to 1.07 s), all_gather ")
    assert said.endswith("from what the ways between here and there carry (DEVICES_LINK_BANDWIDTH)")
    always, never = (Planned(ring.all_reduce(4), 0, least, "a test") for least in (1 << 26, (1 << 26) + 1))
    assert "all_reduce 3" in between_domains(TWO_AND_TWO, [1e8] * 4, planned=[never])
    planned = between_domains(TWO_AND_TWO, [1e8] * 4, planned=[always])
    assert planned.startswith("predicted for 64 MiB: all_gather "), "what goes by a schedule takes another time"
    assert planned.endswith("; all_reduce is faster, by its schedule")
    missing = between_domains(TWO_AND_TWO, None)
    assert missing.startswith("not predicted: the bandwidth of each rank's way to here and there is not known; ")
    assert missing.endswith("set DEVICES_LINK_BANDWIDTH on every rank to its bytes per second, or to measure")
    assert between_domains(TWO_AND_TWO, None, measures=False).endswith("its bytes per second")


def test_times_on_this_host_are_those_that_were_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "calibration.json"
    monkeypatch.setenv("DEVICES_CALIBRATION", str(file))
    assert "there is no " in on_this_host(2)
    assert "run `devices calibrate`" in on_this_host(2)
    # 64 MiB in 16 ms (8 to 32) for each verb that is measured; and a tenth more either way.
    verbs = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
    curves = {verb: (Knot(64 << 20, 8e-3, 16e-3, 32e-3),) for verb in verbs}
    here = Calibration(platform.node(), 2, "2026-11-30", "cpu", {2: curves}, 0.0)
    write_calibration(here, file)
    assert on_this_host(2).startswith("predicted for 64 MiB: all_reduce 16 ms (7.27 ms to 35.2 ms), all_gather 16 ms ")
    assert "3 ranks of" in on_this_host(3)
    write_calibration(replace(here, host="another"), file)
    assert "was measured on another, and this is " in on_this_host(2)


def test_times_of_devices_are_those_of_their_target_or_it_is_said_that_none_is_known() -> None:
    known = of_topology(of_target("trn2.48xlarge", "neuron"), "neuron", 64)
    expected = predict("all_reduce", 64 << 20, "trn2.48xlarge", 64).seconds
    assert known.startswith(f"predicted for 64 MiB: all_reduce {expected.shown(duration)}, all_gather ")
    assert "of which target of the catalogue the devices of backend 'chip' are" in of_topology(None, "chip", 4)


def group() -> Group:
    return Group((4, 5, 6), 1, Device("cpu", "cpu", 0), Store(HashStore()), timedelta(seconds=1), "axis")


def test_shares_are_told_of_the_ranks_of_the_world() -> None:
    domains = Domains(((0,), (1, 2)), ("here", "there"))
    said = told(domains, Shares(domains, [4e6, 1e6, 3e6]), [3, 5, 8])
    assert said.startswith("rank 3 100% of what passes here at 4 MB/s; rank 5 25%, rank 8 75% of what passes there")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["1e9", "", "1e9"], "1e9 on rank 4 and not set on rank 5"),
        (["measure", "measure", "1e9"], "measure on rank 4 and 1e9 on rank 6"),
        (["1e9", "fast", "1e9"], "'fast' on rank 5"),
        (["0", "1e9", "1e9"], "'0' on rank 4"),
        (["1e9", "1e9", "inf"], "'inf' on rank 6"),
        (["nan", "1e9", "1e9"], "'nan' on rank 4"),
    ],
)
def test_a_bandwidth_that_ranks_do_not_agree_on_or_that_is_none_names_the_rank(said: list[str], words: str) -> None:
    with pytest.raises(ArgumentError, match="rank 1 of 3 in group 'axis'") as caught:
        bandwidth.agreed(said, group())
    assert words in str(caught.value)


def test_bandwidths_are_what_all_ranks_have_said() -> None:
    assert bandwidth.agreed(["1e9", "2000000000", "5e8"], group()) == [1e9, 2e9, 5e8]
    assert bandwidth.agreed(["measure"] * 3, group()) == "measure"
    assert bandwidth.agreed([""] * 3, group()) is None
