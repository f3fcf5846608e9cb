from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import devices
from devices.__main__ import main
from devices.errors import ArgumentError, MismatchError, RankFailedError, WorldError
from devices.recorder import reading, trace
from devices.testing import run, run_processes


def calls(world: devices.World) -> None:
    devices.all_reduce(torch.ones(4), op="max")
    devices.broadcast(torch.ones(2, dtype=torch.int64), src=1)
    if world.rank == 0:
        devices.send(torch.ones(1), dst=1)
    if world.rank == 1:
        devices.recv(torch.empty(1), src=0)
    devices.barrier()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the recorders of runs of this test are written."""
    monkeypatch.setenv("DEVICES_FLIGHT", str(tmp_path / "of" / "this" / "job"))
    return tmp_path / "of" / "this" / "job"


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three ranks left."""
    folder = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVICES_FLIGHT", str(folder))
        run(calls, ranks=3)
    return folder


def changed(folder: Path, rank: int, **data: Any) -> None:
    path = folder / f"rank-{rank}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **data}))


def read_calls(folder: Path, rank: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"rank-{rank}.json").read_text())["calls"]
    return found


def test_each_rank_leaves_a_file_that_only_its_user_may_read(folder: Path) -> None:
    run(calls, ranks=3)
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.json", "rank-1.json", "rank-2.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    verbs = [[call["verb"] for call in read_calls(folder, rank)] for rank in range(3)]
    assert verbs == [
        ["all_reduce", "broadcast", "send", "barrier"],
        ["all_reduce", "broadcast", "recv", "barrier"],
        ["all_reduce", "broadcast", "barrier"],
    ]


def test_a_call_has_its_line_of_the_program_there(left: Path) -> None:
    line = calls.__code__.co_firstlineno + 1
    assert read_calls(left, 0)[0]["line"] == f"{__file__}:{line}"


def test_without_the_variable_nothing_is_written_and_no_line_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEVICES_FLIGHT", raising=False)
    monkeypatch.chdir(tmp_path)

    def lines(world: devices.World) -> list[str]:
        devices.barrier()
        return [record.line for record in devices.flight()]

    assert run(lines, ranks=2) == [[""], [""]]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_when_the_world_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEVICES_FLIGHT", str(tmp_path / "file"))
    with pytest.raises(WorldError, match=r"rank \d of 2.*DEVICES_FLIGHT=.*cannot be written there"):
        run(calls, ranks=2)


def test_the_command_shows_the_ranks_side_by_side(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flight", str(left)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Calls of 3 of 3 ranks"
    assert lines[1].split() == ["began", "call", "group", "of", *["rank", "0", "rank", "1", "rank", "2"]]
    [row] = [line for line in lines if "all_reduce #1" in line]
    assert row.count(" ms") == 3
    assert not any("wrong" in line for line in lines)


def test_the_command_names_the_rank_that_is_behind(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(left, tmp_path / "copy"))
    changed(folder, 2, calls=read_calls(folder, 2)[:1], why="running")
    waiting = read_calls(folder, 1)
    waiting[-1]["seconds"] = None
    changed(folder, 1, calls=waiting)
    assert main(["flight", str(folder)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 2 was killed, or runs still" in said
    assert "group '0': rank 2 has not made call #3; its last call is all_reduce #1, done at" in said
    assert "ranks 0, 1 made it: barrier #3 (group '0')" in said
    assert "not called" in said
    assert "not finished" in said


def test_the_command_names_calls_that_differ_and_files_that_are_missing(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(left, tmp_path / "copy"))
    (folder / "rank-1.json").unlink()
    other = read_calls(folder, 2)
    other[0].update(op="sum", numel=8)
    changed(folder, 2, calls=other)
    assert main(["flight", str(folder), "--last", "1"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Calls of 2 of 3 ranks, the last 1 of 4" in said
    assert "rank 1 of 3 left no file" in said
    assert "call #1 of group '0' differs in op: 'max' on rank 0; 'sum' on rank 2" in said


def test_the_error_of_a_rank_is_in_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def differ(world: devices.World) -> None:
        devices.all_reduce(torch.ones(world.rank + 1))

    with pytest.raises(MismatchError):
        run(differ, ranks=2)
    assert main(["flight", str(folder)]) == 1
    assert "MismatchError: " in " ".join(capsys.readouterr().out.split())


def test_of_many_ranks_each_row_says_in_words_what_they_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(calls, ranks=12)
    changed(folder, 5, calls=read_calls(folder, 5)[:-1])
    assert main(["flight", str(folder)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "done on all 12" in said
    assert "not called on rank 5" in said


def test_the_trace_has_a_row_for_each_rank_and_slices_of_a_row_do_not_overlap(left: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace.write(reading.read(left), path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {name.split(" (")[0] for name in names} == {"rank 0", "rank 1", "rank 2"}
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == sum(len(read_calls(left, rank)) for rank in range(3))
    assert all(event["ts"] >= 0 and event["dur"] >= 0 and event["pid"] and event["tid"] for event in slices)
    [reduced] = [event for event in slices if event["name"] == "all_reduce" and event["pid"] == 1]
    assert (reduced["args"]["group"], reduced["args"]["nbytes"], reduced["args"]["op"]) == ("0", 16, "max")
    for thread in {event["tid"] for event in slices}:
        row = sorted((event["ts"], event["ts"] + event["dur"]) for event in slices if event["tid"] == thread)
        assert all(before[1] <= after[0] + 0.0005 for before, after in itertools.pairwise(row))


def test_calls_that_run_at_once_get_rows_of_their_own_in_the_trace(tmp_path: Path) -> None:
    def call(number: int, began: float, seconds: float | None) -> devices.FlightRecord:
        return devices.FlightRecord("barrier", "0", number, "", 0, 0, "", -1, "", began, seconds, "")

    flown = reading.Flown(0, 1, "host", "exit", {"0": (0,)}, (call(1, 1.0, 2.0), call(2, 2.0, None), call(3, 3.5, 1.0)))
    trace.write([flown], tmp_path / "trace.json")
    slices = [event for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if event["ph"] == "X"]
    by_number = {event["args"]["number"]: event for event in slices}
    assert by_number[1]["tid"] == by_number[3]["tid"] != by_number[2]["tid"]
    assert by_number[2]["name"] == "barrier (not finished)"
    assert by_number[2]["ts"] + by_number[2]["dur"] == pytest.approx(3.5e6)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "is no JSON"),
        ("[1]", "is no file of a flight recorder: its format is 'list'"),
        ('{"format": "other"}', "its format is 'other', not 'devices flight 1'"),
        ('{"format": "devices flight 1", "rank": 0}', "is broken: KeyError: 'size'"),
        (
            '{"format": "devices flight 1", "rank": true, "size": 1, "host": "", "why": "", "groups": {}, "calls": []}',
            "is broken: TypeError: True stands where a value of type int should",
        ),
        (
            '{"format": "devices flight 1", "rank": 3, "size": 1, "host": "", "why": "", "groups": {}, "calls": []}',
            "says that it is of rank 3 of 1",
        ),
        (
            '{"format": "devices flight 1", "rank": 0, "size": 1, "host": "", "why": "", "groups": {}, "calls": [{}]}',
            "is broken: KeyError: 'verb'",
        ),
    ],
)
def test_a_bad_file_is_a_clear_error(data: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank-0.json").write_text(data)
    assert main(["flight", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'rank-0.json'} " in error
    assert said in error


def test_a_folder_without_files_and_one_of_two_jobs_are_clear_errors(left: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is no folder; give the one that DEVICES_FLIGHT named"):
        reading.read(tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"holds no file rank-0\.json"):
        reading.read(tmp_path)
    folder = Path(shutil.copytree(left, tmp_path / "copy"))
    changed(folder, 0, size=2)
    with pytest.raises(ArgumentError, match=r"more than one job \(rank-0\.json is of a world of 2, rank-2"):
        reading.read(folder)


def two_calls(world: devices.World) -> None:
    devices.barrier()
    devices.barrier()


def test_ranks_that_end_without_pythons_own_end_leave_all_of_their_calls(tmp_path: Path) -> None:
    run_processes(two_calls, 2, env={"DEVICES_FLIGHT": str(tmp_path)})
    assert [[call["number"] for call in read_calls(tmp_path, rank)] for rank in range(2)] == [[1, 2]] * 2


def wait_and_die(world: devices.World, folder: str) -> None:
    devices.all_reduce(torch.ones(1))
    if world.rank == 0:
        devices.broadcast(torch.ones(1), src=1)
    # By then both files are up to date, though nobody is at an error or at the end.
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        last = [read_calls(Path(folder), rank)[-1:] for rank in range(2)]
        if [call["verb"] for one in last for call in one] == ["broadcast", "all_reduce"]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_rank_that_is_killed_and_one_that_waits_leave_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RankFailedError, match="rank 1 of 2: was killed by SIGKILL"):
        run_processes(wait_and_die, 2, str(tmp_path), env={"DEVICES_FLIGHT": str(tmp_path)})
    assert main(["flight", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 1 has not made call #2; its last call is all_reduce #1, done at" in said
    assert "rank 0 made it: broadcast #2 (group '0', 1 x float32, root 1)" in said
