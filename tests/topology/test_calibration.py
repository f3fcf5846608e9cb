from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import devices.testing
from devices.__main__ import main
from devices.command.calibrate import VERBS, calibrate, keep, measure
from devices.errors import ArgumentError, TopologyError
from devices.topology import predict, read_calibration
from devices.topology.calibration import Knot, knot_of

DATA: dict[str, Any] = {
    "version": 1,
    "host": "here",
    "cpus": 2,
    "measured": "2026-11-30",
    "backend": "cpu",
    "groups": {
        "2": {
            "all_reduce": [[1000, 8e-6, 10e-6, 20e-6], [100_000, 30e-6, 40e-6, 90e-6], [10_000_000, 3e-3, 4e-3, 5e-3]]
        }
    },
}


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(DATA))
    monkeypatch.setenv("DEVICES_CALIBRATION", str(file))
    return file


@pytest.mark.usefixtures("calibrated")
def test_a_time_on_this_host_is_what_was_measured_of_it() -> None:
    found = predict("all_reduce", 100_000, "cpu", 2)
    # A tenth more either way than was measured, for another day.
    assert found.seconds.as_data() == pytest.approx({"low": 30e-6 / 1.1, "expected": 40e-6, "high": 90e-6 * 1.1})
    assert found.latency == pytest.approx(10e-6)
    assert "measured on here, 2 CPUs, 2026-11-30" in found.basis


@pytest.mark.usefixtures("calibrated")
def test_between_two_sizes_it_lies_on_a_line_of_powers() -> None:
    # 10 and 40 us at 1e3 and 1e5 bytes: half way, at 1e4, their geometric mean.
    assert predict("all_reduce", 10_000, "cpu", 2).seconds.expected == pytest.approx(20e-6)


@pytest.mark.usefixtures("calibrated")
def test_fewer_bytes_take_as_long_as_the_fewest_and_more_in_proportion() -> None:
    assert predict("all_reduce", 1, "cpu", 2).seconds.expected == pytest.approx(10e-6)
    assert predict("all_reduce", 30_000_000, "cpu", 2).seconds.expected == pytest.approx(12e-3)


@pytest.mark.usefixtures("calibrated")
def test_a_verb_whose_data_goes_the_same_way_serves_with_a_wider_interval() -> None:
    found = predict("reduce", 1000, "cpu")
    assert found.seconds.as_data() == pytest.approx({"low": 4e-6, "expected": 10e-6, "high": 40e-6})
    assert found.doubts == ("reduce was not measured; all_reduce was, whose data goes the same way",)


@pytest.mark.usefixtures("calibrated")
def test_what_was_not_measured_is_an_error_that_says_what_to_run() -> None:
    with pytest.raises(TopologyError, match=r"4 ranks of here were not measured, 2 were; .*calibrate --ranks 4"):
        predict("all_reduce", 8, "cpu", 4)
    with pytest.raises(TopologyError, match="all_gather was not measured on here"):
        predict("all_gather", 8, "cpu", 2)
    assert predict("all_reduce", 8, "cpu", 1).seconds.high == 0


def test_a_host_of_which_nothing_was_measured_is_an_error_that_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEVICES_CALIBRATION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(TopologyError, match=r"there is no .*/devices/calibration.json; run `devices calibrate`"):
        predict("all_reduce", 8, "cpu")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({**DATA, "version": 2}),
        json.dumps({**DATA, "groups": {}}),
        json.dumps({**DATA, "groups": {"2": {"all_reduce": []}}}),
        json.dumps({**DATA, "groups": {"2": {"all_reduce": [[8, 2, 1, 3]]}}}),
        json.dumps({**DATA, "groups": {"2": {"all_reduce": [[8, 1, 1, 1], [8, 1, 1, 1]]}}}),
    ],
)
def test_a_file_that_is_none_is_an_error_that_names_it(calibrated: Path, text: str) -> None:
    calibrated.write_text(text)
    with pytest.raises(TopologyError, match=r"calibration\.json"):
        predict("all_reduce", 8, "cpu")


def test_what_is_kept_is_read_again_and_beside_it_what_was_measured_before(calibrated: Path, tmp_path: Path) -> None:
    older = read_calibration(calibrated)
    newer = read_calibration(calibrated)
    into = tmp_path / "deep" / "kept.json"
    assert keep(older, into) == into
    groups = {3: older.groups[2]}
    keep(type(newer)("here", 2, "2026-12-01", "cpu", groups), into)
    assert read_calibration(into).groups == {2: older.groups[2], 3: older.groups[2]}
    keep(type(newer)("elsewhere", 2, "2026-12-01", "cpu", groups), into)
    assert read_calibration(into).groups == groups


def test_a_world_that_is_open_is_measured_on_all_ranks_alike() -> None:
    sizes = (256, 4096)
    found = devices.testing.run(lambda world: measure(world, 0.05, sizes), ranks=2)
    assert found[0] == found[1]
    curves, others = found[0]
    assert others is None or 0 <= others <= 1
    assert list(curves) == list(VERBS)
    for curve in curves.values():
        assert [size for size, _ in curve] == list(sizes)
        assert all(turns and all(turn and min(turn) > 0 for turn in turns) for _, turns in curve)


def test_an_interval_is_from_the_fastest_turn_to_the_slowest() -> None:
    quiet, busy = [1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.1, 2.2, 2.3, 9.0]
    assert knot_of(8, [quiet, busy]) == Knot(8, 1.0, 1.4, 9.0)
    assert knot_of(8, [[2.0, 1.0]]) == Knot(8, 1.0, 1.0, 2.0)
    for none in ([], [[1.0], []]):
        with pytest.raises(ArgumentError, match="at least one call in each turn"):
            knot_of(8, none)


@pytest.mark.usefixtures("calibrated")
def test_what_was_measured_beside_other_work_says_so(calibrated: Path) -> None:
    quiet = predict("all_reduce", 1000, "cpu")
    assert quiet.doubts == ()
    calibrated.write_text(json.dumps({**DATA, "others": 0.4}))
    assert predict("all_reduce", 1000, "cpu").doubts == ("other work had 40% of the CPUs of here when it was measured",)
    busy = read_calibration(calibrated)
    groups = {3: busy.groups[2]}
    other = type(busy)("here", 2, "2026-12-01", "cpu", groups, 0.01)
    assert other.joined(busy).others == 0.4
    # What is measured again is as quiet as it was this time.
    assert type(busy)("here", 2, "2026-12-01", "cpu", busy.groups, 0.01).joined(busy).others == 0.01


def test_a_group_that_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least 2 ranks, got 1"):
        calibrate(1)
    with pytest.raises(ArgumentError, match="at most 60 seconds, got 0"):
        calibrate(2, 0)


@pytest.mark.slow
def test_the_command_measures_ranks_of_this_host_and_keeps_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calibration.json"
    assert main(["calibrate", "--ranks", "2", "--seconds", "0.5", "--into", str(file)]) == 0
    said = capsys.readouterr().out
    assert "all_reduce: " in said
    assert str(file) in said
    kept = read_calibration(file)
    assert set(kept.groups[2]) == set(VERBS)
    assert predict("all_reduce", 1 << 20, kept, 2).seconds.expected > 0
