from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
from devices.errors import CollectiveError, MismatchError
from devices.recorder import record as recorder_record
from devices.testing import run

CALLS: list[tuple[Callable[[], Any], str, str, int, int, str, int]] = [
    (lambda: devices.all_reduce(torch.ones(3), op="max"), "all_reduce", "float32", 3, 12, "max", -1),
    (lambda: devices.all_gather(torch.ones(2, dtype=torch.int64)), "all_gather", "int64", 2, 16, "", -1),
    (lambda: devices.reduce_scatter(torch.ones(4)), "reduce_scatter", "float32", 4, 16, "sum", -1),
    (lambda: devices.all_to_all(torch.ones(2)), "all_to_all", "float32", 2, 8, "", -1),
    (lambda: devices.broadcast(torch.ones(2, dtype=torch.uint8), src=1), "broadcast", "uint8", 2, 2, "", 1),
    (lambda: devices.reduce(torch.ones(1), dst=1, op="min"), "reduce", "float32", 1, 4, "min", 1),
    (lambda: devices.gather(torch.ones(1), dst=0), "gather", "float32", 1, 4, "", 0),
    (lambda: devices.permute(torch.ones(1), pairs=[(0, 1)]), "permute", "float32", 1, 4, "", -1),
    (lambda: devices.barrier(), "barrier", "", 0, 0, "", -1),
    (lambda: dist.all_reduce(torch.ones(5)), "all_reduce", "float32", 5, 20, "sum", -1),
]


@pytest.mark.parametrize("which", range(len(CALLS)), ids=[f"{at}-{call[1]}" for at, call in enumerate(CALLS)])
def test_each_verb_is_recorded_as_it_was_called(which: int) -> None:
    call, verb, dtype, numel, nbytes, op, root = CALLS[which]

    def called(world: devices.World) -> tuple[devices.FlightRecord, ...]:
        before = time.time()
        call()
        assert before - 5 <= devices.flight()[-1].began <= time.time() + 5
        return devices.flight()

    for records in run(called, ranks=2):
        last = records[-1]
        assert (last.verb, last.dtype, last.op, last.root) == (verb, dtype, op, root)
        assert last.state == "done"
        assert last.seconds is not None
        assert last.number == 1
        assert (last.numel, last.nbytes) == (numel, nbytes)


def test_a_scatter_is_recorded_with_what_each_rank_gets() -> None:
    def called(world: devices.World) -> tuple[str, int, int]:
        devices.scatter(torch.ones(4), src=1)
        # Before it goes what the others do not know of it.
        [*_, last] = devices.flight()
        return last.verb, last.numel, last.root

    assert run(called, ranks=2) == [("scatter", 2, 1)] * 2


def test_a_message_is_recorded_with_its_peer_and_is_none_of_the_groups_calls() -> None:
    def called(world: devices.World) -> list[tuple[str, int, int]]:
        if world.rank == 0:
            devices.send(torch.ones(2), dst=1)
        else:
            devices.recv(torch.empty(2), src=0)
        devices.barrier()
        return [(record.verb, record.number, record.root) for record in devices.flight()]

    assert run(called, ranks=2) == [[("send", 0, 1), ("barrier", 1, -1)], [("recv", 0, 0), ("barrier", 1, -1)]]


def test_an_asynchronous_call_ends_when_it_is_waited_for() -> None:
    def called(world: devices.World) -> list[str]:
        work = devices.all_reduce(torch.ones(2), async_op=True)
        states = [devices.flight()[-1].state]
        work.wait()
        return [*states, devices.flight()[-1].state]

    assert run(called, ranks=2) == [["not finished", "done"]] * 2


def test_the_last_thousand_calls_are_kept() -> None:
    def called(world: devices.World) -> tuple[int, int, int]:
        x = torch.ones(1)
        for _ in range(1003):
            dist.all_reduce(x)
        records = devices.flight()
        return len(records), records[0].number, records[-1].number

    assert run(called, ranks=2) == [(1000, 4, 1003)] * 2


def test_each_group_counts_its_own_calls() -> None:
    def called(world: devices.World) -> list[tuple[str, int]]:
        group = dist.new_group([0, 1])
        devices.barrier()
        devices.barrier(group)
        devices.barrier(group)
        devices.barrier()
        return [(record.group, record.number) for record in devices.flight() if record.verb == "barrier"]

    for records in run(called, ranks=2):
        world, other = records[0][0], records[1][0]
        assert world != other
        assert records == [(world, 1), (other, 1), (other, 2), (world, 2)]


def test_a_group_whose_name_another_had_is_told_apart() -> None:
    recorder = recorder_record.Recorder()
    group = devices.Group((3, 5), 1, devices.Device("cpu", "cpu", 0), None, None, "0")  # type: ignore[arg-type]
    for _ in range(2):
        recorder_record.end(recorder.join(group).begin("barrier", None, 0))
    assert [recorder_record.frozen(record, 0).group for record in recorder.records()] == ["0", "0 (2)"]
    assert (recorder.rank, recorder.size) == (5, 2)


def test_an_error_shows_the_end_of_the_recorder() -> None:
    def called(world: devices.World) -> None:
        for _ in range(7):
            devices.barrier()
        devices.all_reduce(torch.ones(world.rank + 2))

    with pytest.raises(MismatchError) as caught:
        run(called, ranks=2)
    [note] = [note for note in caught.value.__notes__ if "its last calls" in note]
    lines = note.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("rank ")
    assert lines[1].startswith("  barrier #4 (group '0'): done")
    assert lines[5].startswith("  all_reduce #8 (group '0', sum ")


def test_a_failed_call_is_recorded_with_its_error() -> None:
    recorder = recorder_record.Recorder()
    group = devices.Group((0, 1), 0, devices.Device("cpu", "cpu", 0), None, None, "g")  # type: ignore[arg-type]
    joined = recorder.join(group)
    record = joined.begin("all_reduce", torch.float32, 8, "sum")
    error = CollectiveError("rank 1 died")
    joined.failed(record, error)
    joined.failed(record, error)
    frozen = recorder_record.frozen(recorder.records()[0], 0)
    assert (frozen.state, frozen.error) == ("failed", "CollectiveError: rank 1 died")
    assert error.__notes__ == ["rank 0, its last calls:\n  all_reduce #1 (group 'g', sum 8 x float32): failed"]


def test_a_record_keeps_no_tensor_and_no_group_alive() -> None:
    recorder = recorder_record.Recorder()
    group = devices.Group((0, 1), 0, devices.Device("cpu", "cpu", 0), None, None, "g")  # type: ignore[arg-type]
    recorder_record.end(recorder.join(group).begin("barrier", None, 0))
    gc.collect()
    assert not any(group is referrer or group in gc.get_referents(referrer) for referrer in recorder.records())


def test_begin_and_end_cost_little() -> None:
    group = devices.Group((0, 1), 0, devices.Device("cpu", "cpu", 0), None, None, "g")  # type: ignore[arg-type]
    joined = recorder_record.Recorder().join(group)
    best = min(_seconds(joined, 2000) for _ in range(20))
    # It takes 0.3 us; a machine under load takes some times that.
    assert best < 10e-6


def _seconds(joined: recorder_record.GroupRecorder, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        recorder_record.end(joined.begin("all_reduce", torch.float32, 1024, "sum"))
    return (time.perf_counter() - began) / times
