"""The private names of torch that a vendor's own process group needs; the others are in `devices._torch`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d


def groups_messages(group: Any) -> bool:
    """Return whether a native backend of torch's does sends and receives together that are grouped, as NCCL must."""
    return bool(getattr(group, "supports_coalescing", False))


@contextlib.contextmanager
def grouped_messages(backend: Any) -> Iterator[list[dist.Work]]:
    """Do the sends and receives that are started meanwhile together; yield a list that gets the work of them all."""
    works: list[dist.Work] = []
    backend._start_coalescing()
    try:
        yield works
    finally:
        # Also where one of them was refused: what was begun must be ended.
        works.append(backend._end_coalescing())


def process_group_around(
    backend: Any, device_type: str, index: int, store: dist.Store, rank: int, size: int, timeout: timedelta
) -> dist.ProcessGroup:
    """Return a process group of torch's own whose verbs on that type of device are `backend`'s, no Python in between.

    On CPU tensors, of an accelerator's group, they are gloo's: torch 2.13 takes no backend that is written in Python.
    """
    kinds = dist.ProcessGroup.BackendType
    kind = {"nccl": kinds.NCCL, "gloo": kinds.GLOO}.get(backend.name(), kinds.CUSTOM)
    # As torch makes them, by the constructor that Python may not subclass: this one asks C++ alone.
    group = dist.ProcessGroup(dist.PrefixStore("torch", store), rank, size)
    group._set_default_backend(kind)
    if device_type != "cpu":
        # The backend is bound to its device, and says so where a tensor is on another. The group is not: torch would
        # then have new groups split off by every rank of the world.
        group.bound_device_id = torch.device(device_type, index)
        group._register_backend(torch.device(device_type), kind, backend)
        group.bound_device_id = None
        beside = dist.ProcessGroupGloo(dist.PrefixStore("cpu", store), rank, size, timeout)
        group._register_backend(torch.device("cpu"), kinds.GLOO, beside)
    else:
        group._register_backend(torch.device("cpu"), kind, backend)
    return group


def is_open(group: dist.ProcessGroup) -> bool:
    """Return whether torch has not destroyed the group."""
    return group in c10d._world.pg_map
