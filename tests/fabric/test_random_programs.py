"""Random programs that are right: whatever verbs are on their way together, every order of ranks gives the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices.testing
from devices import World

VERBS = (
    "all_reduce", "all_gather", "uneven", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter",
    "permute", "barrier", "messages", "part of a buffer", "objects", "store",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.float64, torch.int64, torch.uint8)


@dataclass(frozen=True)
class Step:
    """One verb over one group, and what each rank does about work that is on its way."""

    verb: str
    ranks: tuple[int, ...]
    group: int
    size: int
    dtype: torch.dtype
    is_async: bool
    root: int
    op: str
    pairs: tuple[tuple[int, int], ...]
    number: int


def drawn(draw: random.Random, ranks: int) -> tuple[list[tuple[int, ...]], list[Step]]:
    """Return the groups and the steps of a program."""
    groups = [tuple(range(ranks))]
    groups += [tuple(sorted(draw.sample(range(ranks), draw.randint(1, ranks)))) for _ in range(draw.randint(0, 3))]
    steps = []
    for number in range(draw.randint(5, 40)):
        group = draw.choice([0, draw.randrange(len(groups))])
        members = len(groups[group])
        targets = draw.sample(range(members), members)
        steps.append(
            Step(
                draw.choice(VERBS), groups[group], group, draw.choice([0, 1, 1, 3, 30_000]), draw.choice(DTYPES),
                draw.random() < 0.5, draw.randrange(members), draw.choice(["sum", "max", "min"]),
                tuple(enumerate(targets)), number,
            )
        )  # fmt: skip
    return groups, steps


def started(step: Step, world: World, group: Any, buffer: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
    """Return what the verb gives, or its work, and a tensor that is right once that is done."""
    members, mine = len(step.ranks), step.ranks.index(world.rank)
    x = (torch.arange(step.size * members) % 7 + mine + step.number).to(step.dtype)
    how = {"async_op": step.is_async}
    match step.verb:
        case "all_reduce" | "reduce_scatter":
            return getattr(devices, step.verb)(x, group, op=step.op, **how), None
        case "reduce":
            return devices.reduce(x, group, dst=step.root, op=step.op, **how), None
        case "all_gather" | "all_to_all":
            return getattr(devices, step.verb)(x, group, **how), None
        case "uneven":
            width = 1 if step.size else 0
            return devices.all_gather(x[: mine * width], group, sizes=[n * width for n in range(members)], **how), None
        case "broadcast":
            return devices.broadcast(x, group, src=step.root, **how), None
        case "gather":
            return devices.gather(x, group, dst=step.root, **how), None
        case "scatter":
            return devices.scatter(x if mine == step.root else None, group, src=step.root, **how), None
        case "permute":
            return devices.permute(x, group, pairs=step.pairs, **how), None
        case "barrier":
            return devices.barrier(group, **how), None
        case "messages":
            if members % 2:
                return None, None
            sent = devices.send(x, group, dst=mine ^ 1, async_op=True)
            return [sent, devices.recv(torch.empty_like(x), group, src=mine ^ 1, **how)], None
        case "part of a buffer":
            part = buffer[4 * step.number : 4 * step.number + 4]
            return dist.all_reduce(part, group=group, **how), part
        case "objects":
            found: list[Any] = [None] * members
            dist.all_gather_object(found, (mine, step.number), group=group)
            return torch.tensor(found), None
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{step.number} {world.rank}", f"{mine}")
    return torch.tensor([int(store.get(f"{step.number} {rank}")) for rank in step.ranks]), None


def results(work: Any, tensor: torch.Tensor | None) -> list[torch.Tensor]:
    """Wait, and return the tensors that came of it."""
    if isinstance(work, list):
        return [found for each in work for found in results(each, tensor)]
    if isinstance(work, torch.Tensor):
        return [work.clone()]
    if work is None:
        return [] if tensor is None else [tensor.clone()]
    if tensor is not None:
        work.wait()
        return [tensor.clone()]
    result = work.result()
    return [] if result is None else [result.clone()]


def program(world: World, groups: list[tuple[int, ...]], steps: list[Step], seed: int) -> list[tuple[int, Any]]:
    draw, opened = random.Random(seed + world.rank), [None, *(dist.new_group(list(ranks)) for ranks in groups[1:])]
    buffer, found, pending = torch.arange(4.0 * len(steps)), [], []
    for step in steps:
        if world.rank not in step.ranks:
            continue
        pending.append((step.number, *started(step, world, opened[step.group], buffer)))
        if len(pending) > 3 or step.root == 0:
            draw.shuffle(pending)
            for number, work, tensor in pending:
                while draw.random() < 0.5 and hasattr(work, "is_completed") and not work.is_completed():
                    pass
                found.append((number, results(work, tensor)))
            pending.clear()
    found += [(number, results(work, tensor)) for number, work, tensor in pending]
    return sorted(found, key=lambda each: each[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_ranks_gives_the_same(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(8):
        ranks = draw.choice([2, 2, 3, 4, 5, 6])
        groups, steps = drawn(draw, ranks)
        hows = ({}, {"seed": draw.randrange(1, 99)}, {"seed": draw.randrange(1, 99)}, {"parallel": True})
        first, *others = (
            devices.testing.run(program, groups, steps, seed, ranks=ranks, timeout=60, **how) for how in hows
        )
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)
