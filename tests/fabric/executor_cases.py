"""Schedules of all verbs, what each rank puts in, and by plain torch what must come out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from algorithms.meaning import MEANT, reduced, values
from fabric_member import Member

from devices.algorithms import direct, pairwise, recursive, ring, trees
from devices.algorithms.arithmetic import LOCAL
from devices.algorithms.layout import Layout
from devices.algorithms.schedule import Schedule
from devices.fabric import executor

ROOTED = (trees.broadcast, trees.reduce, trees.gather, trees.scatter, direct.gather, direct.scatter)
REGULAR = (
    ring.all_gather, ring.reduce_scatter, ring.all_reduce, recursive.doubling, recursive.halving, pairwise.all_to_all,
    pairwise.all_gather, pairwise.reduce_scatter,
)  # fmt: skip
REDUCING = (ring.reduce_scatter, ring.all_reduce, recursive.doubling, recursive.halving, pairwise.reduce_scatter)
REDUCTIONS = [(op, dtype) for op, dtype in MEANT if (op, dtype) in LOCAL]

Case = tuple[Schedule, str, str, torch.dtype]


def schedules(make: Callable[..., Schedule], size: int) -> list[Schedule]:
    if make in ROOTED:
        return [make(size, root) for root in sorted({0, size // 2, size - 1})]
    return [make(size)]


def sent(size: int, rank: int) -> list[int]:
    """Return how much a rank sends to each in an all_to_all: uneven, and sometimes nothing."""
    return [(rank + 2 * peer) % 5 for peer in range(size)]


def shares(size: int, kind: str) -> list[int]:
    return {"uneven": [(rank * 5 + 3) % 7 for rank in range(size)], "even": [3] * size, "none": [0] * size}[kind]


def input_of(schedule: Schedule, rank: int, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """Return what a rank has at first."""
    counts, size = shares(schedule.size, kind), schedule.size
    numel = {
        "all_gather": counts[rank], "gather": counts[rank], "reduce_scatter": sum(counts), "scatter": sum(counts),
        "all_to_all": sum(sent(size, rank)) if kind != "none" else 0,
    }  # fmt: skip
    whole = 2 * size + 1 if kind == "uneven" else max(1, size - 1) if kind == "even" else 0
    return values(numel.get(schedule.verb, whole), dtype, seed=rank)


def layout_of(schedule: Schedule, rank: int, kind: str, given: torch.Tensor) -> tuple[torch.Tensor, Layout]:
    """Return where a rank's result will be, and its chunks."""
    size, counts, root = schedule.size, shares(schedule.size, kind), schedule.root
    result, input, output = given.clone(), {}, {}
    match schedule.verb:
        case "all_to_all":
            counts = [count if kind != "none" else 0 for count in sent(size, rank)]
            received = [sent(size, peer)[rank] if kind != "none" else 0 for peer in range(size)]
            result = given.new_zeros(sum(received))
            input, output = dict(enumerate(given.split(counts))), dict(enumerate(result.split(received)))
        case "all_gather" | "gather":
            has_output = schedule.verb == "all_gather" or rank == root
            result = given.new_zeros(sum(counts) if has_output else 0)
            input, output = {rank: given}, dict(enumerate(result.split(counts))) if has_output else {}
        case "reduce_scatter" | "scatter":
            result = given.new_zeros(counts[rank])
            has_input = schedule.verb == "reduce_scatter" or rank == root
            input, output = dict(enumerate(given.split(counts))) if has_input else {}, {rank: result}
        case "permute":
            counts, result = [given.numel()], torch.zeros_like(given)
            input, output = {0: given}, {0: result}
        case _:
            counts, output = [given.numel()], {0: result}
    return result, Layout(schedule, counts, given, input, output)


def expected_of(schedule: Schedule, kind: str, op: str, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Return each rank's result by the verb's law, in plain torch; None where it is undefined."""
    size, counts, root = schedule.size, shares(schedule.size, kind), schedule.root
    inputs = [input_of(schedule, rank, kind, dtype) for rank in range(size)]
    match schedule.verb:
        case "all_reduce":
            return [reduced(op, inputs)] * size
        case "reduce":
            return [reduced(op, inputs) if rank == root else None for rank in range(size)]
        case "reduce_scatter":
            return list(reduced(op, inputs).split(counts))
        case "all_gather":
            return [torch.cat(inputs)] * size
        case "gather":
            return [torch.cat(inputs) if rank == root else None for rank in range(size)]
        case "broadcast":
            assert root is not None
            return [inputs[root]] * size
        case "scatter":
            assert root is not None
            return list(inputs[root].split(counts))
    if kind == "none":
        return [torch.empty(0, dtype=dtype)] * size
    split = [given.split(sent(size, rank)) for rank, given in enumerate(inputs)]
    return [torch.cat([pieces[rank] for pieces in split]) for rank in range(size)]


def executed(at: Member, schedule: Schedule, kind: str, op: str, dtype: torch.dtype) -> torch.Tensor:
    """Return what the executor makes of this rank's input, which it must leave as it is."""
    given = input_of(schedule, at.fabric.rank, kind, dtype)
    before = given.clone()
    result, chunks = layout_of(schedule, at.fabric.rank, kind, given)
    mark = at.mark(schedule.verb)
    at.start(executor.run(schedule, at.fabric.rank, at.pairs, chunks, mark, op), mark).wait()
    assert torch.equal(given.view(torch.uint8), before.view(torch.uint8))
    return result
