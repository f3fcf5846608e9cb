"""What a verb is called over: a mesh axis, a process group or the world, turned into that group's `Verbs`."""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import Union

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from devices._backend import Capabilities, Device, Group
from devices._c10d import DevicesGroup
from devices._process_group import ProcessGroupCommunicator
from devices._store import Store
from devices.algorithms.verbs import Verbs
from devices.errors import MeshError, WorldError

GroupLike = Union[DeviceMesh, dist.ProcessGroup, None]

_adopted: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[str, Verbs]] = weakref.WeakKeyDictionary()


def process_group(group: GroupLike) -> dist.ProcessGroup:
    """Return torch's process group for what a verb was called over.

    Raises:
        MeshError: a mesh of several axes; a verb acts along one.
        WorldError: no world is open, or this rank is not in the group.
    """
    if group is None:
        world = dist.group.WORLD
        if world is None:
            raise WorldError(
                "no world is open; call devices.init(), or torch.distributed.init_process_group('devices'), first"
            )
        return world
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            axes = group.mesh_dim_names or tuple(map(str, range(group.ndim)))
            raise MeshError(
                f"a verb acts along one mesh axis, but this mesh has {group.ndim} ({', '.join(axes)}); "
                f"pass mesh[{axes[-1]!r}], or no group for the whole world"
            )
        return group.get_group()
    if isinstance(group, dist.ProcessGroup):
        return group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise WorldError(f"rank {dist.get_rank()} is not a member of the group that the verb was called over")
    raise TypeError(f"a verb is called over a mesh axis, a process group or None, got {type(group).__name__}")


def verbs_over(group: GroupLike, device: torch.device) -> Verbs:
    """Return the verbs of `group` for tensors on `device`."""
    found = process_group(group)
    if isinstance(found, DevicesGroup):
        return found.verbs_on(device.type)
    by_type = _adopted.get(found)
    if by_type is None:
        by_type = _adopted.setdefault(found, {})
    if device.type not in by_type:
        by_type[device.type] = _adopt(found, device)
    return by_type[device.type]


def own_verbs(group: GroupLike) -> Verbs:
    """Return the verbs of `group` for tensors on the kind of device that the group is of."""
    found = process_group(group)
    if isinstance(found, DevicesGroup):
        return found.verbs
    accelerator = torch.accelerator.current_accelerator() if dist.get_backend(found) != "gloo" else None
    return verbs_over(found, accelerator or torch.device("cpu"))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def compiled_group(group: GroupLike) -> tuple[str, int, int]:
    """Return the name, this rank and the size of `group`: constants of a graph that is compiled."""
    found = process_group(group)
    return found.group_name, found.rank(), found.size()


def _adopt(group: dist.ProcessGroup, device: torch.device) -> Verbs:
    """Return our verbs over a process group of torch's own."""
    ranks = tuple(dist.get_process_group_ranks(group))
    transport = dist.get_backend(group)
    me = Device(transport, device.type, device.index or 0)
    # torch keeps the group's timeout to itself, and applies it.
    seen = Group(ranks, dist.get_rank(group), me, Store(group.get_group_store()), timedelta.max, group.group_name)
    capabilities = Capabilities(frozenset(), ProcessGroupCommunicator.reductions(transport))
    return Verbs(ProcessGroupCommunicator(group), seen, capabilities)
