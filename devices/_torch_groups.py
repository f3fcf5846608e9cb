"""The private names of torch that a vendor's own process group needs; the others are in `devices._torch`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from devices._backend import Group
from devices.errors import UnsupportedError


def torch_backend(name: str, group: Group) -> Any:
    """Return the backend, written in C++, that torch's own `init_process_group(name)` would make for these ranks.

    Args:
        name: "nccl", "gloo" or that of a vendor's package, which is imported before.
        group: the members, seen from this rank; every one of them calls this.

    Raises:
        UnsupportedError: this torch has none of that name.
    """
    # A connection of its own: NCCL's threads wait in it, which is to hold up nobody else.
    apart = group.store if name == "gloo" else group.store.apart() or group.store
    ranks = list(group.ranks)
    # Another try after one that failed must find nothing of it: NCCL would take the id that is there.
    tried = "" if name == "gloo" else f"{apart.add(f'{name}/tries/{group.rank}', 1)}/"
    store = dist.PrefixStore(f"{name}/{tried}", apart.torch)
    if name == "gloo":
        made: Any = dist.ProcessGroupGloo(store, group.rank, group.size, group.timeout)
    elif name == "nccl" and dist.is_nccl_available():
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = group.timeout
        options.global_ranks_in_group = ranks
        options.group_name = group.name  # type: ignore[assignment]  # a str with a name of its own
        made = dist.ProcessGroupNCCL(store, group.rank, group.size, options)
    elif (plugin := dist.Backend._plugins.get(name.upper())) is not None:
        if plugin.extended_api:
            told = c10d._DistributedBackendOptions()
            told.store, told.group_rank, told.group_size, told.timeout = store, group.rank, group.size, group.timeout
            told.group_id, told.global_ranks_in_group = group.name, ranks
            return plugin.creator_fn(told, None)
        return plugin.creator_fn(store, group.rank, group.size, group.timeout)
    else:
        raise UnsupportedError(f"{group}: this torch, {torch.__version__}, has no process group {name!r}")
    made._set_sequence_number_for_group()
    return made


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


def abort_together(backends: Sequence[Any]) -> AbstractContextManager[None]:
    """Let groups that are aborted meanwhile be so at once, where torch has a way for it: NCCL's would else wait."""
    starter = next((backend for backend in backends if hasattr(backend, "_group_start")), None)
    return contextlib.nullcontext() if starter is None else _grouped(starter)


@contextlib.contextmanager
def _grouped(backend: Any) -> Iterator[None]:
    backend._group_start()
    try:
        yield
    finally:
        backend._group_end()


def abort_all() -> None:
    """Abort all of torch's groups, and let torch forget them."""
    c10d._abort_process_group()


def open_group(
    backend: str, store: dist.Store, ranks: Sequence[int], rank: int, timeout: timedelta, name: str
) -> dist.ProcessGroup:
    """Open torch's group of a registered backend, on its members alone, also before there is a default group.

    It is entered in torch's account of groups: a vendor's own, written in Python, asks torch for its ranks.
    """
    members = list(ranks) if dist.is_initialized() else []
    group, _ = c10d._new_process_group_helper(len(ranks), rank, members, backend, store, name, timeout=timeout)  # type: ignore[arg-type]
    c10d._world.pg_group_ranks[group] = {member: place for place, member in enumerate(ranks)}
    return group  # type: ignore[no-any-return]


def close_group(group: Any) -> None:
    """Close a native group, and take it off torch's account if it is there."""
    if group in c10d._world.pg_map:
        dist.destroy_process_group(group)
    else:
        group.shutdown()


def gloo_timeout(process_group: Any) -> timedelta:
    """Return after how long a group of gloo's gives up; where torch does not say, what torch takes by itself."""
    found = getattr(getattr(process_group, "options", None), "_timeout", None)
    return found if isinstance(found, timedelta) else c10d.default_pg_timeout
