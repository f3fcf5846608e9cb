"""Every generated schedule, run by the fabric's executor on thread ranks, gives what plain torch gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from algorithms.meaning import same
from executor_cases import (
    REDUCING,
    REDUCTIONS,
    REGULAR,
    ROOTED,
    Case,
    executed,
    expected_of,
    input_of,
    schedules,
)
from fabric_member import member

import devices.testing
from devices import World
from devices.algorithms import direct, dissemination, recursive, ring, trees
from devices.algorithms.choose import choose
from devices.algorithms.layout import Layout
from devices.algorithms.replay import replay
from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send, parts
from devices.errors import DeadlockError, MismatchError
from devices.fabric import executor

HOWS: list[dict[str, Any]] = [{}, {"seed": 1}, {"seed": 2}, {"parallel": True}]
ALL_SIZES, FEW_SIZES = range(1, 10), (2, 3, 5, 8)
"""Every size in one order of the ranks, and a few, those of a power of two among them, in the others."""


def label(value: object) -> str | None:
    if callable(value):
        return f"{value.__module__.rpartition('.')[2]}.{value.__name__}"
    return str(value) if isinstance(value, dict) else None


def marks(how: dict[str, Any]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if how == {"seed": 2} else []


over_hows = pytest.mark.parametrize("how", [pytest.param(how, marks=marks(how)) for how in HOWS], ids=label)
over_sizes_and_hows = pytest.mark.parametrize(
    ("size", "how"),
    [pytest.param(size, how, marks=marks(how)) for how in HOWS for size in (FEW_SIZES if how else ALL_SIZES)],
    ids=label,
)


def check(size: int, cases: Sequence[Case], how: dict[str, Any]) -> None:
    """Run all cases, one after another, on the same ranks, and compare."""

    def results(world: World) -> list[torch.Tensor]:
        at = member("test of the executor")
        return [executed(at, *case) for case in cases]

    found = devices.testing.run(results, ranks=size, **how)
    for number, case in enumerate(cases):
        for rank, expected in enumerate(expected_of(*case)):
            if expected is not None:
                assert same(found[rank][number], expected), f"rank {rank} of {size}: {case}"


@over_hows
@pytest.mark.parametrize("make", [*REGULAR, *ROOTED], ids=label)
def test_a_generated_schedule_computes_its_verb(make: Callable[..., Schedule], how: dict[str, Any]) -> None:
    for size in FEW_SIZES if how else ALL_SIZES:
        cases = [
            (schedule, kind, "sum", torch.int64)
            for schedule in schedules(make, size)
            for kind in ("uneven", "even", "none")
        ]
        check(size, cases, how)


@over_hows
@pytest.mark.parametrize("make", [*REDUCING, trees.reduce], ids=label)
def test_every_op_on_every_dtype_that_a_rank_reduces(make: Callable[..., Schedule], how: dict[str, Any]) -> None:
    for size in (5,) if how else (2, 5, 8):
        schedule = schedules(make, size)[-1]
        check(size, [(schedule, "uneven", op, dtype) for op, dtype in REDUCTIONS], how)


@over_sizes_and_hows
def test_a_permute_carries_each_pair(size: int, how: dict[str, Any]) -> None:
    ring_of_all = tuple((rank, (rank + 1) % size) for rank in range(size))
    for pairs in (ring_of_all, ring_of_all[::2], ((0, size - 1),), ((0, 0),), ()):
        schedule = direct.permute(size, pairs)
        found = devices.testing.run(
            lambda world, schedule: executed(member("permute"), schedule, "even", "sum", torch.int64),
            schedule, ranks=size, **how,
        )  # fmt: skip
        sources = {target: source for source, target in pairs}
        for rank, result in enumerate(found):
            given = input_of(schedule, sources.get(rank, rank), "even", torch.int64)
            assert torch.equal(result, given if rank in sources else torch.zeros_like(given))


@over_sizes_and_hows
def test_nobody_leaves_a_barrier_before_all_have_come(size: int, how: dict[str, Any]) -> None:
    """Its messages have a byte each, for one of no elements is not sent."""
    come: list[int] = []

    def comes(world: World) -> list[int]:
        at, schedule, found = member("barrier"), dissemination.barrier(world.size), []
        for number in range(5):
            mark, chunk = at.mark("barrier"), torch.zeros(1, dtype=torch.uint8)
            chunks = Layout(schedule, (1,), chunk, {0: chunk}, {0: torch.zeros(1, dtype=torch.uint8)})
            come.append(number)
            at.start(executor.run(schedule, world.rank, at.pairs, chunks, mark), mark).wait()
            found.append(come.count(number))
        return found

    assert devices.testing.run(comes, ranks=size, **how) == [[size] * 5] * size
    come.clear()


@over_hows
@pytest.mark.parametrize("size", [1, 3, 5, 8])
@pytest.mark.parametrize("make", [ring.all_reduce, recursive.doubling, recursive.halving], ids=label)
def test_the_executor_and_the_replay_agree_to_the_bit(make: Any, size: int, how: dict[str, Any]) -> None:
    """Sums of random floats tell the order of the operations, which is the schedule's alone."""
    generator = torch.Generator().manual_seed(size)
    tensors = [torch.randn(57, generator=generator) for _ in range(size)]
    schedule: Schedule = make(size)

    def in_place(tensor: torch.Tensor) -> Layout:
        return Layout(schedule, (tensor.numel(),), tensor, {}, {0: tensor})

    def added(world: World) -> torch.Tensor:
        at, mine = member("to the bit"), tensors[world.rank].clone()
        mark = at.mark()
        at.start(executor.run(schedule, world.rank, at.pairs, in_place(mine), mark, "sum"), mark).wait()
        return mine

    replayed = [tensor.clone() for tensor in tensors]
    replay(schedule, [in_place(tensor) for tensor in replayed], "sum")
    for found, expected in zip(devices.testing.run(added, ranks=size, **how), replayed, strict=True):
        assert torch.equal(found, expected)


@over_hows
def test_many_schedules_on_their_way_at_once_do_not_mix(how: dict[str, Any]) -> None:
    """Also where ranks wait for them in another order than they were started in."""

    def overlaps(world: World) -> list[list[float]]:
        at, works, tensors = member("overlap"), [], []
        for number in range(12):
            make = (ring.all_reduce, recursive.doubling, recursive.halving)[number % 3]
            schedule, tensor = make(world.size), torch.full((7,), float(world.rank * number))
            mark = at.mark()
            chunks = Layout(schedule, (7,), tensor, {}, {0: tensor})
            works.append(at.start(executor.run(schedule, world.rank, at.pairs, chunks, mark, "sum"), mark))
            tensors.append(tensor)
        for work in works if world.rank % 2 else reversed(works):
            work.wait()
        return [tensor.tolist() for tensor in tensors]

    total = sum(range(5))
    assert devices.testing.run(overlaps, ranks=5, **how) == [[[float(total * n)] * 7 for n in range(12)]] * 5


@over_hows
def test_a_chunk_can_be_sent_and_reduced_in_one_step(how: dict[str, Any]) -> None:
    """What is sent is what was there before."""
    chunks = parts("output", 1)

    def program(rank: int) -> Program:
        return ((Send(1 - rank, 0), Recv(1 - rank, 0, reduce=True)),)

    schedule = Schedule("all_reduce", 2, chunks, program).validate()
    kinds = [(schedule, kind, op, torch.float64) for kind in ("uneven", "even") for op in ("sum", "max")]
    check(2, kinds, how)


@over_hows
def test_copies_come_before_the_messages_of_their_step(how: dict[str, Any]) -> None:
    chunks = (*parts("output", 1), *parts("scratch", 1), Chunk("input", 0))

    def program(rank: int) -> Program:
        return ((Copy(2, 1), Send(1 - rank, 1), Recv(1 - rank, 0)), (Copy(1, 0, reduce=True),))

    schedule = Schedule("all_reduce", 2, chunks, program).validate()

    def runs(world: World) -> list[float]:
        at, given, result = member("copies"), torch.full((3,), 1.0 + world.rank), torch.zeros(3)
        mark = at.mark()
        layout = Layout(schedule, (3,), result, {0: given}, {0: result})
        at.start(executor.run(schedule, world.rank, at.pairs, layout, mark), mark).wait()
        return result.tolist()

    assert devices.testing.run(runs, ranks=2, **how) == [[3.0] * 3] * 2


@over_hows
def test_ranks_that_run_schedules_for_other_sizes_are_told(how: dict[str, Any]) -> None:
    def mixes(world: World) -> None:
        at, tensor = member("sizes"), torch.ones(1 + 3 * world.rank)
        mark = at.mark("all_reduce", tensor.numel())
        chunks = Layout(schedule, (tensor.numel(),), tensor, {}, {0: tensor})
        at.start(executor.run(schedule, world.rank, at.pairs, chunks, mark, "sum"), mark).wait()

    schedule = recursive.doubling(2)
    with pytest.raises(MismatchError, match="differ in size: 1 on rank 0"):
        devices.testing.run(mixes, ranks=2, **how)


@over_hows
def test_a_schedule_that_deadlocks_is_a_deadlock(how: dict[str, Any]) -> None:
    chunks = (*parts("output", 1), *parts("scratch", 1))
    schedule = Schedule("all_reduce", 2, chunks, lambda rank: ((Recv(1 - rank, 1),), (Send(1 - rank, 0),)))
    with pytest.raises(DeadlockError, match="rank 0 of 2 waits for rank 1"):
        check(2, [(schedule, "even", "sum", torch.int64)], how)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [2, 5, 9])
def test_what_is_chosen_for_large_data_is_right_too(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(size)
    whole = torch.randn(size, 40_001, generator=generator)

    def adds(world: World) -> bool:
        at, mine = member("large"), whole[world.rank].clone()
        schedule = choose("all_reduce", world.size, mine.nbytes)
        mark = at.mark()
        layout = Layout(schedule, (mine.numel(),), mine, {}, {0: mine})
        at.start(executor.run(schedule, world.rank, at.pairs, layout, mark, "sum"), mark).wait()
        return torch.allclose(mine, whole.sum(0), atol=1e-4)

    assert all(devices.testing.run(adds, ranks=size, seed=seed))
