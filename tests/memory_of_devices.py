"""What tests of memory that ranks map of each other's devices have in common; on every rank, within `devices.init`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from devices import Group
from devices.algorithms.verbs import Verbs


def group_of_its_own(name: str) -> Group:
    """Return the world's ranks as a group that nothing else uses."""
    world: Any = dist.group.WORLD
    return replace(world.group, name=name, store=world.group.store.under(name))


def every_verb(verbs: Verbs, numel: int) -> None:
    """Call each verb on tensors of so many elements, over three ranks."""
    rank, size = verbs.group.rank, verbs.group.size
    mine = torch.arange(float(numel)) + 10 * rank
    everyone = torch.stack([torch.arange(float(numel)) + 10 * other for other in range(size)])
    total = mine.clone()
    verbs.all_reduce(total)
    assert total.equal(everyone.sum(0))
    halves = mine.bfloat16()
    verbs.all_reduce(halves, "avg", async_op=True).wait()
    assert halves.equal(everyone.bfloat16().float().mean(0).bfloat16())
    bits = mine.to(torch.int16)
    verbs.all_reduce(bits, "bxor")
    expected = everyone.to(torch.int16)
    assert bits.equal(expected[0] ^ expected[1] ^ expected[2])
    whole = torch.empty(size * numel)
    work = verbs.all_gather(whole, mine, async_op=True)
    work.wait()
    assert whole.equal(everyone.flatten())
    part = torch.empty(numel // size)
    verbs.reduce_scatter(part, mine, "max")
    assert part.equal(everyone.amax(0).chunk(size)[rank])
    shuffled = torch.empty_like(mine)
    verbs.all_to_all(shuffled, mine)
    assert shuffled.equal(torch.cat([row.chunk(size)[rank] for row in everyone]))
    same = mine.clone()
    verbs.broadcast(same, 2)
    assert same.equal(everyone[2])
    reduced, gathered = mine.clone(), torch.empty(size * numel) if rank == 1 else None
    verbs.reduce(reduced, 1)
    verbs.gather(gathered, mine, 1)
    assert reduced.equal(everyone.sum(0) if rank == 1 else mine)
    assert gathered is None or gathered.equal(everyone.flatten())
    verbs.scatter(part, mine if rank == 2 else None, 2)
    assert part.equal(everyone[2].chunk(size)[rank])
    moved = torch.empty_like(mine)
    verbs.permute(moved, mine, [(0, 1), (1, 2), (2, 0)])
    assert moved.equal(everyone[(rank - 1) % size])
    verbs.barrier()
    sent = verbs.send(mine, (rank + 1) % size, tag=7, async_op=True)
    verbs.recv(moved, (rank - 1) % size, tag=7)
    sent.wait()
    assert moved.equal(everyone[(rank - 1) % size])
