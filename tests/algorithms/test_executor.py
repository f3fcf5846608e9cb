"""One rank's program over `exchange`: what it posts, and in which order."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import cast

import pytest
import torch
from in_memory import Point, World

from devices._backend import Message, Pending
from devices.algorithms import dissemination, pairwise, recursive, ring, trees
from devices.algorithms.executor import COLLECTIVE_TAG, run
from devices.algorithms.layout import Layout
from devices.algorithms.replay import replay
from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send, parts
from devices.errors import PluginError


def in_place(schedule: Schedule, tensor: torch.Tensor) -> Layout:
    return Layout(schedule, (tensor.numel(),), tensor, {}, {0: tensor})


def executed(schedule: Schedule, tensors: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    """Return what the executor, one thread a rank, makes of an in-place schedule."""
    world = World(schedule.size)
    results = [tensor.clone() for tensor in tensors]
    threads = [
        threading.Thread(
            target=run, args=(schedule, rank, Point(world, rank).exchange, in_place(schedule, results[rank]), op)
        )
        for rank in range(schedule.size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("make", [ring.all_reduce, recursive.doubling, recursive.halving])
def test_the_executor_and_the_replay_agree_to_the_bit(make: Callable[[int], Schedule], size: int) -> None:
    """Sums of random floats tell the order of the operations, which is the schedule's alone."""
    generator = torch.Generator().manual_seed(size)
    tensors = [torch.randn(57, generator=generator) for _ in range(size)]
    replayed = [tensor.clone() for tensor in tensors]
    replay(make(size), [in_place(make(size), tensor) for tensor in replayed], "sum")
    for found, expected in zip(executed(make(size), tensors, "sum"), replayed, strict=True):
        assert torch.equal(found, expected)
        assert torch.allclose(found, torch.stack(tensors).sum(0), atol=1e-5)


def test_operands_are_combined_in_rank_order() -> None:
    # The sum of two NaNs is one of them by its place, so it tells the order of many.
    nans = [torch.tensor([0x7FC00000 + rank], dtype=torch.int32).view(torch.float32) for rank in range(5)]
    expected = functools.reduce(torch.add, nans).view(torch.int32).item()
    assert expected in (0x7FC00000, 0x7FC00004)
    assert executed(trees.reduce(5, 0), nans, "sum")[0].view(torch.int32).item() == expected
    for result in executed(recursive.doubling(5), nans, "sum"):
        assert result.view(torch.int32).item() == expected


class Recorder:
    """An exchange that never waits and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Message], list[Message]]] = []

    def __call__(self, sends: list[Message], recvs: list[Message]) -> Pending:
        self.calls.append((sends, recvs))
        return self

    def wait(self) -> None:
        pass

    def is_completed(self) -> bool:
        return True


def test_each_step_is_one_exchange_of_bytes_with_the_reserved_tag() -> None:
    recorder = Recorder()
    tensor = torch.ones(8, dtype=torch.float64)
    run(ring.all_reduce(4), 1, recorder, in_place(ring.all_reduce(4), tensor), "sum")
    assert len(recorder.calls) == 6
    for sends, recvs in recorder.calls:
        assert [message.peer for message in sends] == [2]
        assert [message.peer for message in recvs] == [0]
        for message in (*sends, *recvs):
            assert (message.tag, message.tensor.dtype, message.tensor.numel()) == (COLLECTIVE_TAG, torch.uint8, 16)


def test_an_exchange_that_returns_nothing_to_wait_for_is_an_error_also_in_a_barrier() -> None:
    schedule = dissemination.barrier(3)
    layout = Layout(schedule, (1,), torch.zeros(1), {0: torch.ones(1)}, {0: torch.zeros(1)})
    with pytest.raises(PluginError, match=r"exchange returned None; it is to return a devices.Pending"):
        run(schedule, 0, lambda sends, recvs: cast(Pending, None), layout)


def test_empty_chunks_are_not_sent() -> None:
    recorder = Recorder()
    schedule = pairwise.all_gather(3)
    output = torch.zeros(4)
    counts = (0, 4, 0)
    layout = Layout(schedule, counts, output, {0: torch.empty(0)}, dict(enumerate(output.split(counts))))
    run(schedule, 0, recorder, layout)
    assert [([m.peer for m in sends], [m.peer for m in recvs]) for sends, recvs in recorder.calls] == [([], [1])]


def test_copies_come_before_the_messages_of_their_step() -> None:
    chunks = (*parts("output", 1), *parts("scratch", 1), Chunk("input", 0))

    def program(rank: int) -> Program:
        return ((Copy(2, 1), Send(1 - rank, 1), Recv(1 - rank, 0)), (Copy(1, 0, reduce=True),))

    schedule = Schedule("all_reduce", 2, chunks, program).validate()
    world = World(2)
    outputs = [torch.zeros(3), torch.zeros(3)]
    threads = []
    for rank in range(2):
        layout = Layout(schedule, (3,), outputs[rank], {0: torch.full((3,), 1.0 + rank)}, {0: outputs[rank]})
        threads.append(threading.Thread(target=run, args=(schedule, rank, Point(world, rank).exchange, layout, "sum")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output.tolist() for output in outputs] == [[3.0] * 3] * 2
