"""What processes do that are emulated Trainium4 and GPUs: worlds without the fabric, and some that cannot open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import devices
from devices import World, _registry, errors
from devices._interop import Shared
from devices._world import init_on
from devices.testing import Mixed
from devices.testing._mixed_processes import OnHost, choice_of

BOTH = {"trainium4": 2, "rubin": 2}


def opened(ranks: dict[str, int], **assume: str) -> tuple[Mixed, World]:
    mixed = Mixed(ranks, assume=assume)
    return mixed, init_on(choice_of(mixed, int(os.environ["RANK"])), timeout=60)


def said(call: Callable[[], Any]) -> str:
    """Return the error of a call in words, "" if it raises none."""
    try:
        call()
    except errors.DevicesError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_a_row() -> dict[str, Any]:
    """Open a world without the fabric's memory, worlds that cannot be, and one in which a rank dies."""
    os.environ["DEVICES_FABRIC"] = "off"
    _, world = opened(BOTH)
    with world:
        total = devices.all_reduce(torch.arange(3.0) + world.rank).tolist()
        off = {"sum": total, "world": devices.explain(), "group": devices.explain(dist.group.WORLD)}
    del os.environ["DEVICES_FABRIC"]
    return {"off": off, **cannot_open(), "dies": dies()}


def cannot_open() -> dict[str, str]:
    """Open worlds that cannot be, and then one that can."""
    rank = int(os.environ["RANK"])
    answers = {}
    release = _registry.release
    _registry.release = lambda name: f"{name} of 2026" if rank < 2 else f"{name} of 2027"
    answers["versions"] = said(lambda: opened(BOTH))
    _registry.release = release
    answers["assumed"] = said(lambda: opened(BOTH, mixed_domain="two" if rank == 3 else "one"))
    find = _registry.of_device_type
    if rank == 2:
        _registry.of_device_type = _no_backend
    answers["no bridge"] = said(lambda: opened(BOTH, mixed_domain="two"))
    _registry.of_device_type = find
    memory = OnHost.memory
    if rank == 1:
        OnHost.memory = _no_memory
    answers["memory"] = said(lambda: opened(BOTH))
    OnHost.memory = memory
    return answers


def _no_backend(kind: str) -> None:
    raise errors.BackendNotFoundError(f"no plugin provides a backend whose devices are of type {kind!r}")


def _no_memory(self: OnHost, group: devices.Group) -> Shared | str:
    found = self._interop.memory(group)
    raise errors.WorldError(f"the switch is off; and the fabric itself says: {found}")


def dies() -> tuple[str, float]:
    """Let rank 3 die in a world of one domain; return what the others are told, and after how long."""
    _, world = opened(BOTH)
    assert devices.all_reduce(torch.ones(1)).item() == world.size
    if world.rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    return said(lambda: devices.all_reduce(torch.ones(3))), time.monotonic() - start


def recovers() -> list[dict[str, str]]:
    """Let ranks of a world that a fabric joins die, and CPU ranks beside them; return what is said of each world."""
    rank = int(os.environ["RANK"])
    mixed = Mixed({"trainium4": 2, "rubin": 1})
    if rank >= mixed.size:
        world = devices.init("cpu", timeout=60)
        checked(world, [0, 1, 2, 3, 4])
        dies_at_once()
    with mixed.watched_by(rank):
        world = init_on(choice_of(mixed, rank), timeout=60)
        told = [checked(world, [0, 1, 2, 3, 4])]
        world = left(world)
        told.append(checked(world, [0, 1, 2]))
        if rank == 1:
            dies_at_once()
        world = left(world)
        told.append(checked(world, [0, 2]))
        # Of the memory that stood in for the fabric's nothing is to be had any more, and nobody has died.
        os.environ["DEVICES_FABRIC"] = "off"
        world = left(world, said(lambda: devices.all_reduce(torch.ones(1 + world.rank))))
        told.append(checked(world, [0, 2]))
        world.close()
    return told


def checked(world: World, first: list[int]) -> dict[str, str]:
    """Use a world of the ranks that were called so at first; return what is said of it, and what it refuses."""
    numbers = torch.tensor([1.0, 10.0]) ** int(os.environ["RANK"])
    total = sum(torch.tensor([1.0, 10.0], dtype=torch.float64) ** rank for rank in first)
    torch.testing.assert_close(devices.all_reduce(numbers), total.float(), rtol=0, atol=0)
    gathered = devices.all_gather(torch.tensor([int(os.environ["RANK"])], dtype=torch.int32))
    assert gathered.tolist() == first
    refused = said(lambda: devices.broadcast(torch.ones(2, dtype=torch.uint16)))
    return {"world": devices.explain(), "refused": refused}


def left(world: World, error: str = "") -> World:
    """Return the world of those that are left after an error."""
    error = error or said(devices.barrier)
    assert error.startswith(("CollectiveError: ", "MismatchError: ")), error
    return world.recover()


def dies_at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
