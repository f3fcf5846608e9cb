"""The laws of what is under way: when it is complete, what goes on beside it, and whom a message came from."""

from __future__ import annotations

import time
import unittest

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.laws import law


def complete_when_done(world: devices.World) -> None:
    rank, device = world.rank, world.device
    store = dist.PrefixStore("complete", dist.group.WORLD.get_group_store())  # type: ignore[union-attr]
    calls: list[tuple[str, dict[str, object]]] = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("permute", {"pairs": [(1, 0)]}),
        ("barrier", {}),
    ]  # fmt: skip
    for verb, given in calls:
        x = () if verb == "barrier" else (torch.full((1000,), float(rank + 1), device=device),)
        if rank:
            # Not by a verb that may be as wrong as the one that is looked at.
            store.get(f"go on with {verb} {given}")
        work = getattr(devices, verb)(*x, async_op=True, **given)
        if rank == 0:
            is_early = work.is_completed()
            # Only now the others call it.
            store.set(f"go on with {verb} {given}", "")
            assert not is_early, f"rank 0: {verb} with {given} is_completed() before any other rank has called it"
        deadline = time.monotonic() + 30
        while not work.is_completed():
            assert time.monotonic() < deadline, (
                f"rank {rank}: {verb} with {given} is not is_completed() 30 s after all ranks have called it"
            )
            time.sleep(0.001)
        work.wait()
        assert work.is_completed(), f"rank {rank}: {verb} with {given} was waited for and is not is_completed()"


def messages_beside_verbs(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    after, before = (rank + 1) % size, (rank - 1) % size
    around = [(of, (of + 1) % size) for of in range(size)]
    for step in range(20):
        count = 1 + 400 * step
        work = devices.permute(torch.full((count,), 1000.0 * rank + step, device=device), pairs=around, async_op=True)
        mine = torch.full((count,), -1000.0 * rank - step, device=device)
        sent = devices.send(mine, dst=after, tag=step, async_op=True)
        message = devices.recv(torch.empty(count, device=device), src=before, tag=step).cpu()
        sent.wait()
        moved = work.result().cpu()
        wanted = 1000.0 * before + step
        for what, found, value in (("permute", moved, wanted), ("the message beside it", message, -wanted)):
            low, high = found.min().item(), found.max().item()
            assert low == high == value, (
                f"rank {rank}: in round {step}, {what} of {count} elements brought values from {low} to {high}, "
                f"expected {value}"
            )


def messages_from_any(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for step in range(4):
        if rank:
            # What has another tag is sent first, and is not what is asked for first.
            sent = [dist.isend(torch.full((3,), 100.0 * tag + 10 * step + rank, device=device), 0, tag=tag)
                    for tag in (8, 5)]  # fmt: skip
            for work in sent:
                assert work is not None
                work.wait()
            devices.barrier()
            continue
        senders = []
        for _ in range(size - 1):
            x = torch.empty(3, device=device)
            try:
                sender = dist.recv(x, tag=5)
            except devices.errors.UnsupportedError:
                raise unittest.SkipTest("needs recv_any, which the communicator does not have") from None
            found, wanted = x.tolist(), [500.0 + 10 * step + sender] * 3
            assert found == wanted, (
                f"rank 0: of tag 5 from any rank came {found}, said to be of rank {sender}, which sent {wanted}"
            )
            senders.append(sender)
        assert sorted(senders) == list(range(1, size)), (
            f"rank 0: all other ranks have sent one message each, and those that came are said to be of {senders}"
        )
        for peer in range(1, size):
            found = devices.recv(torch.empty(3, device=device), src=peer, tag=8)[0].item()
            wanted_one = 800.0 + 10 * step + peer
            assert found == wanted_one, f"rank 0: of tag 8 from rank {peer} came {found}, expected {wanted_one}"
        devices.barrier()


CHECKS = [
    law("order.completed", "What is under way is not completed before all have called it, and is soon after.",
        complete_when_done),
    law("order.beside", "Messages may go while composed verbs of the same group are under way.", messages_beside_verbs,
        messages=True),
    law("order.from_any", "A message from any rank is of the tag asked for, and says from which rank it is.",
        messages_from_any, messages=True),
]  # fmt: skip
