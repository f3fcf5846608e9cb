"""The laws of a group's life: how it ends, and that nothing is lost that was on its way."""

from __future__ import annotations

import threading
import time
import unittest
from typing import Any

import torch
import torch.distributed as dist

import devices
from devices.testing.conformance.laws import law


def closed_groups_refuse(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)))
    x = torch.ones(2 * size, device=device)
    total = devices.all_reduce(x, group)[0].item()
    assert total == size, f"rank {rank}: the sum of ones over {size} ranks is {total}"
    dist.destroy_process_group(group)
    peer = (rank + 1) % size
    calls: list[tuple[str, dict[str, Any]]] = [
        ("all_reduce", {}), ("all_reduce", {"op": "max"}), ("all_gather", {}), ("reduce_scatter", {}),
        ("all_to_all", {}), ("broadcast", {"src": 0}), ("reduce", {"dst": 0}), ("gather", {"dst": 0}),
        ("permute", {"pairs": [(0, 0)]}), ("send", {"dst": peer}), ("recv", {"src": peer}),
    ]  # fmt: skip
    for verb, given in calls:
        for async_op in (False, True):
            try:
                getattr(devices, verb)(x, group, async_op=async_op, **given)
            except devices.errors.WorldError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"rank {rank}: {verb} over a group that was closed raised {type(error).__name__}: {error}; "
                    "expected a WorldError"
                ) from error
            raise AssertionError(f"rank {rank}: {verb} over a group that was closed raised nothing, with {async_op=}")
    total = devices.all_reduce(x)[0].item()
    assert total == size, f"rank {rank}: after another group was closed the world's sum of ones is {total}, not {size}"


def closing_twice(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)))
    devices.barrier(group)
    for _ in range(3):
        group.shutdown()
    dist.destroy_process_group(group)
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after a group was closed three times the world's sum of ones is {total}"
    world.close()
    world.close()


def opening_again(world: devices.World) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise unittest.SkipTest("needs ranks that are processes: a thread rank has one world, which the run opens")
    rank, name = world.rank, world.backend
    world.close()
    for number in range(2):
        with devices.init(name, timeout=60) as again:
            x = torch.full((3,), float(again.rank + number), device=again.device)
            found = devices.all_reduce(x)[0].item()
            wanted = float(sum(of + number for of in range(again.size)))
            assert again.rank == rank, f"rank {rank} is rank {again.rank} in a world that was opened after the first"
            assert found == wanted, f"rank {rank}: the sum in world {number + 2} is {found}, expected {wanted}"


def closing_with_verbs_under_way(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for step in range(3):
        group = dist.new_group(list(range(size)))
        works = [devices.all_reduce(torch.full((1000,), float(rank), device=device), group, op=op, async_op=True)
                 for op in ("sum", "max", "sum", "max")]  # fmt: skip
        dist.destroy_process_group(group)
        for number, work in enumerate(works):
            try:
                found = work.result()[0].item()
            except devices.errors.DevicesError:
                continue  # it was given up, and says so
            wanted = float(sum(range(size)) if number % 2 == 0 else size - 1)
            assert found == wanted, (
                f"rank {rank}: verb {number} of group {step}, under way when the group was closed, returned {found}; "
                f"expected {wanted} or an error"
            )
    total = devices.all_reduce(torch.ones(1, device=device)).item()
    assert total == size, f"rank {rank}: after groups were closed with verbs under way the sum of ones is {total}"


def the_last_before_the_end(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for step in range(4):
        group = dist.new_group(list(range(size)))
        if rank:
            time.sleep(0.02)
        found = devices.broadcast(torch.full((20_000,), float(step if rank == 0 else -1), device=device), group, src=0)
        dist.destroy_process_group(group)
        low, high = found.min().item(), found.max().item()
        assert low == high == step, (
            f"rank {rank}: what rank 0 sent around just before it closed the group is {low} to {high}, expected {step}"
        )


def the_last_message_before_the_end(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    for step in range(4):
        group = dist.new_group(list(range(size)))
        if rank == 0:
            for peer in range(1, size):
                devices.send(torch.full((20_000,), float(step), device=device), group, dst=peer)
        else:
            time.sleep(0.02)
            found = devices.recv(torch.empty(20_000, device=device), group, src=0)
            low, high = found.min().item(), found.max().item()
            assert low == high == step, (
                f"rank {rank}: the message that rank 0 sent just before it closed the group is {low} to {high}, "
                f"expected {step}"
            )
        dist.destroy_process_group(group)


def closing_alone(world: devices.World) -> None:
    size, rank, device = world.size, world.rank, world.device
    group = dist.new_group(list(range(size)))
    devices.barrier(group)
    # Rank 0 is through with it before the others, which wait for rank 0 elsewhere, even begin.
    if rank == 0:
        dist.destroy_process_group(group)
    found = devices.broadcast(torch.full((1,), float(rank), device=device), src=0).item()
    assert found == 0, f"rank {rank}: rank 0 sent 0.0 around, and here came {found}"
    if rank != 0:
        dist.destroy_process_group(group)


def communicators_ended_twice(world: devices.World) -> None:
    import dataclasses

    # A vendor's own group is one of torch's, whose lanes are kept beside it.
    from devices.c10d.lanes import lanes_of

    lanes: Any = lanes_of(dist.group.WORLD)
    rank, size = world.rank, world.size
    for order in (("close", "close"), ("abort", "abort", "close", "close"), ("close", "abort")):
        # As the world itself opens it, but with nothing of ours around it.
        name = "-".join(order)
        store = devices.Store(dist.PrefixStore(name, lanes.group.store.torch))
        communicator = lanes.choice.backend.open(dataclasses.replace(lanes.group, store=store, name=name))
        input = torch.full((3,), rank, dtype=torch.uint8, device=world.device)
        output = torch.empty(3 * size, dtype=torch.uint8, device=world.device)
        try:
            communicator.all_gather(output, input).wait()
        except devices.errors.UnsupportedError:
            pass  # it has no such verb of its own
        else:
            wanted = [of for of in range(size) for _ in range(3)]
            assert output.tolist() == wanted, f"rank {rank}: all_gather wrote {output.tolist()}, expected {wanted}"
        devices.barrier()
        for number, call in enumerate(order):
            try:
                getattr(communicator, call)()
            except Exception as error:
                raise AssertionError(
                    f"rank {rank}: of {', then '.join(order)}, call {number + 1} raised {type(error).__name__}: {error}"
                ) from error
        devices.barrier()


CHECKS = [
    law("life.closed", "Every verb over a closed group is a WorldError, and other groups go on.", closed_groups_refuse,
        messages=True),
    law("life.closed_twice", "A group and a world may be closed more than once.", closing_twice),
    law("life.opened_again", "A world may be opened after another was closed.", opening_again),
    law("life.communicator", "A communicator may be aborted and closed more than once.", communicators_ended_twice,
        dtypes=()),
    law("life.closed_alone", "Closing a group waits for no other rank.", closing_alone),
    law("life.closed_under_way", "A group may be closed with verbs under way: they are done, or say that they are not.",
        closing_with_verbs_under_way),
    law("life.last_verb", "What a rank gave to a verb arrives, though it closes the group right after.",
        the_last_before_the_end),
    law("life.last_message", "A message arrives, though its sender closes the group right after.",
        the_last_message_before_the_end, messages=True),
]  # fmt: skip
