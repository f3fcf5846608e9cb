"""Verbs of a group that are on their way together, over the fabric of thread ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from fabric_member import member

import devices
import devices.testing
from devices import World
from devices.errors import CollectiveError

HOWS = [{}, *({"seed": seed} for seed in range(1, 9)), {"parallel": True}]

pytestmark = pytest.mark.parametrize("how", HOWS, ids=str)


def test_results_of_overlapping_collectives_are_each_their_own(how: dict[str, Any]) -> None:
    """A root may be through with a later one first: when that began all had come, to the earlier one not yet."""

    def overlaps(world: World) -> list[list[float]]:
        tensors, works = [torch.full((3,), float(number + world.rank)) for number in range(6)], []
        for number, tensor in enumerate(tensors):
            if world.rank == 0 and number == 3:
                # The others come to all of them meanwhile.
                dist.recv(torch.empty(1), src=world.size - 1)
            works.append(dist.all_reduce(tensor, async_op=number != 3 or world.rank != 0))
        if world.rank == world.size - 1:
            dist.send(torch.ones(1), dst=0)
        for work in reversed(works):
            if work is not None:
                work.wait()
        return [tensor.tolist() for tensor in tensors]

    expected = [[3.0 * number + 3] * 3 for number in range(6)]
    assert devices.testing.run(overlaps, ranks=3, **how) == [expected] * 3


def test_all_kinds_of_verbs_may_be_on_their_way_at_once(how: dict[str, Any]) -> None:
    def overlaps(world: World) -> list[list[float]]:
        rank, size = world.rank, world.size
        x = torch.arange(4.0) + rank
        works = [
            devices.all_reduce(x, async_op=True),
            devices.all_gather(x[:1], async_op=True),
            devices.reduce_scatter(x, async_op=True),
            devices.all_to_all(x, async_op=True),
            devices.broadcast(x, src=2, async_op=True),
            devices.gather(x[:1], dst=1, async_op=True),
            devices.scatter(x if rank == 3 else None, src=3, async_op=True),
            devices.reduce(x, dst=2, async_op=True),
            devices.permute(x[:1], pairs=[(rank, (rank + 1) % size) for rank in range(size)], async_op=True),
            devices.all_gather(x[:rank], sizes=list(range(size)), async_op=True),
            devices.all_reduce(x.bfloat16(), op="avg", async_op=True),
            devices.barrier(async_op=True),
        ]
        peer = rank ^ 1
        sent = devices.send(x[:2], dst=peer, async_op=True)
        received = devices.recv(torch.empty(2), src=peer)
        results = [work.result() for work in (works if rank % 2 else reversed(works))]
        sent.wait()
        results = results if rank % 2 else results[::-1]
        return [received.tolist(), *(result.tolist() for result in results if isinstance(result, torch.Tensor))]

    for rank, found in enumerate(devices.testing.run(overlaps, ranks=4, **how)):
        expected: list[list[float]] = [
            [rank ^ 1, (rank ^ 1) + 1],
            [6, 10, 14, 18],
            [0, 1, 2, 3],
            [6 + 4 * rank],
            [rank, rank + 1, rank + 2, rank + 3],
            [2, 3, 4, 5],
            *([[0, 1, 2, 3]] if rank == 1 else []),
            [3 + rank],
            *([[6, 10, 14, 18]] if rank == 2 else []),
            [(rank - 1) % 4],
            [1, 2, 3, 3, 4, 5],
            [1.5, 2.5, 3.5, 4.5],
        ]
        assert found == expected


def test_composed_verbs_and_messages_share_a_rank(how: dict[str, Any]) -> None:
    """A composed verb that is on its way has a thread of its own, which takes turns with the rank's."""

    def shares(world: World) -> list[float]:
        peer, found = 1 - world.rank, []
        for number in range(15):
            work = devices.permute(torch.full((3,), 10.0 * number + world.rank), pairs=[(0, 1), (1, 0)], async_op=True)
            if world.rank == 0:
                devices.send(torch.full((2,), float(number)), dst=peer)
            else:
                assert devices.recv(torch.empty(2), src=peer).tolist() == [number, number]
            found.append(work.result()[0].item())
        return found

    assert devices.testing.run(shares, ranks=2, **how) == [[10.0 * n + 1 - r for n in range(15)] for r in range(2)]


def test_messages_of_one_tag_go_to_receives_in_the_order_of_these(how: dict[str, Any]) -> None:
    """Also where the later receive begins when its message is there, and that of the earlier too."""

    def exchanges(world: World) -> list[float]:
        peer, works, received = world.rank ^ 1, [], []
        for number in range(8):
            works.append(devices.send(torch.tensor([float(number)]), dst=peer, tag=number % 2, async_op=True))
            received.append(torch.empty(1))
            works.append(dist.irecv(received[-1], src=peer, tag=number % 2))
            if number == 5 and world.rank == 0:
                devices.barrier()
        if world.rank:
            devices.barrier()
        for work in works[:: 1 if world.rank else -1]:
            assert work is not None
            work.wait()
        return [tensor.item() for tensor in received]

    assert devices.testing.run(exchanges, ranks=2, **how) == [[0, 1, 2, 3, 4, 5, 6, 7]] * 2


def test_receives_from_anyone_and_from_one_share_a_tag_in_their_order(how: dict[str, Any]) -> None:
    def receives(world: World) -> list[float]:
        if world.rank:
            for number in range(2):
                dist.send(torch.tensor([10.0 * world.rank + number]), dst=0)
            return []
        tensors = [torch.empty(1) for _ in range(4)]
        works = [dist.irecv(tensors[0], src=1), dist.irecv(tensors[1]), dist.irecv(tensors[2], src=2)]
        for work in reversed(works):
            assert work is not None
            work.wait()
        dist.recv(tensors[3])
        found = [tensor.item() for tensor in tensors]
        # Whoever it came from, each rank's second message comes after its first.
        assert found[0] == 10
        assert sorted(found) == [10, 11, 20, 21]
        if found[1] == 20:
            assert found[2] == 21
        return found

    devices.testing.run(receives, ranks=3, **how)


def test_an_aborted_group_does_not_hold_up_another(how: dict[str, Any]) -> None:
    def aborts(world: World) -> list[str]:
        at, told = member("aborted").communicator, []
        works = [at.all_reduce(torch.ones(2), "sum") for _ in range(2)] if world.rank == 0 else []
        if world.rank == 1:
            works.append(at.all_reduce(torch.ones(2), "sum"))
            works.append(at.exchange([], [devices.Message(torch.zeros(1, dtype=torch.uint8), 0)]))
        dist.barrier()
        if world.rank == 0:
            at.abort()
        dist.barrier()
        for work in works[-1:]:
            try:
                work.wait()
            except CollectiveError as error:
                told.append(str(error))
        total = devices.all_reduce(torch.ones(1)).item()
        assert total == world.size
        return told

    found = devices.testing.run(aborts, ranks=2, **how)
    assert all("aborted" in said for told in found for said in told)
    assert len(found[1]) == 1
