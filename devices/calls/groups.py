"""What a verb is called over: a mesh axis, a process group or the world, turned into that group's `Verbs`."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from devices import _observing
from devices._backend import REDUCE_OPS, Capabilities, Device, Group
from devices._process_group import ProcessGroupCommunicator
from devices._store import Store
from devices.algorithms.observed import AnyVerbs
from devices.algorithms.verbs import Verbs
from devices.c10d.group import DevicesGroup
from devices.c10d.lanes import lanes_of, native_verbs
from devices.errors import ArgumentError, DevicesError, MeshError, WorldError

GroupLike = DeviceMesh | dist.ProcessGroup | None

_adopted: dict[dist.ProcessGroup, dict[str, Verbs]] = {}
"""Our verbs over process groups of torch's own, by type of device."""


def process_group(group: GroupLike) -> dist.ProcessGroup:
    """Return torch's process group for what a verb was called over.

    Raises:
        MeshError: a mesh of several axes; a verb acts along one.
        WorldError: no world is open, it was closed, or this rank is not in the group.
    """
    if group is None:
        world = dist.group.WORLD
        if world is None:
            raise WorldError(
                "no world is open; call devices.init(), or torch.distributed.init_process_group('devices'), first"
            )
        return world
    if isinstance(group, dist.ProcessGroup):
        return group
    if isinstance(group, DeviceMesh):
        try:
            return group.get_group()
        except Exception as error:
            raise _without_group(group) from error
    raise _no_group(group)


def _without_group(mesh: DeviceMesh) -> DevicesError:
    if not dist.is_initialized():
        return WorldError(f"the world of {mesh} is closed; open one by devices.init() and make the mesh anew")
    if mesh.ndim == 1:
        return WorldError(f"{_who()}: this rank has no open group for {mesh}")
    axes = mesh.mesh_dim_names
    which = f"mesh[{axes[-1]!r}]" if axes else "one axis of a mesh with names"
    return MeshError(
        f"{_who()}: a verb acts along one mesh axis, but this mesh has {mesh.ndim} "
        f"({', '.join(axes or ()) or 'unnamed'}); pass {which}, or no group for the whole world"
    )


def _no_group(group: object) -> DevicesError:
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        return WorldError(f"{_who()} is not in the group that the verb was called over")
    what = f"a group is a mesh axis, a process group or None for the world, got {type(group).__name__}"
    if isinstance(group, str):
        what += f" {group!r}; " + (
            f"pass op={group!r}" if group in REDUCE_OPS else f"pass mesh[{group!r}], of its mesh"
        )
    elif isinstance(group, (list, tuple, range)):
        what += "; torch.distributed.new_group(ranks), called on every rank, makes one of ranks"
    return ArgumentError(f"{_who()}: {what}" if dist.is_initialized() else what)


def _who() -> str:
    return f"rank {dist.get_rank()} of {dist.get_world_size()}"


def verbs_over(group: GroupLike, like: torch.Tensor) -> AnyVerbs:
    """Return the verbs of `group` for tensors on the kind of device that `like` is on."""
    # `device.type` makes a string each time.
    return _verbs_on(process_group(group), "cpu" if like.is_cpu else like.device.type)


def own_verbs(group: GroupLike) -> AnyVerbs:
    """Return the verbs of `group` for tensors on the kind of device that the group is of."""
    found = process_group(group)
    if (lanes := lanes_of(found)) is not None:
        return _verbs_on(found, lanes.group.device.type)
    accelerator = torch.accelerator.current_accelerator()
    has_own = accelerator is not None and _transports(found).get(accelerator.type, "gloo") != "gloo"
    return _verbs_on(found, accelerator.type if accelerator is not None and has_own else "cpu")


def _verbs_on(group: dist.ProcessGroup, kind: str) -> AnyVerbs:
    if isinstance(group, DevicesGroup):
        return group.verbs_on(kind, is_ours=True)
    if (native := native_verbs(group, kind)) is not None:
        return native
    by_kind = _adopted.get(group, {}) if _is_open(group) else {}
    verbs = by_kind.get(kind) or _adopt(group, kind)
    return _observing.observed(verbs, is_ours=True) if _observing.is_on else verbs


def compiled_group(group: GroupLike) -> tuple[str, int, int]:
    """Return the name, this rank and the size of `group`: constants of a graph that is compiled.

    Written so that Dynamo traces it: it guards the mesh or the process group, and another one is compiled anew.
    """
    found = dist.group.WORLD if group is None else group
    if isinstance(found, DeviceMesh):
        if found.ndim != 1:
            raise MeshError(f"a verb acts along one mesh axis, but this mesh has {found.ndim}")
        found = found.get_group()
    if found is None:
        raise WorldError("no world is open; call devices.init() first")
    return found.group_name, found.rank(), found.size()


def _adopt(group: dist.ProcessGroup, kind: str) -> Verbs:
    """Return our verbs over a process group of torch's own."""
    for known in list(_adopted):
        if not _is_open(known):
            del _adopted[known]
    if not _is_open(group):
        raise WorldError("the process group was destroyed; open a world and make the group anew")
    transports = _transports(group)
    if kind not in transports:
        raise ArgumentError(
            f"rank {dist.get_rank(group)} of {group.size()}: the tensor is on {kind!r}, but torch's group "
            f"{group.group_name!r} carries tensors on {' and '.join(transports)}; move the tensor there"
        )
    transport = transports[kind]
    index = 0 if kind == "cpu" else torch.get_device_module(kind).current_device()
    me = Device(transport, kind, index)
    ranks = tuple(dist.get_process_group_ranks(group))
    # torch keeps the group's timeout to itself, and applies it.
    seen = Group(ranks, dist.get_rank(group), me, Store(group.get_group_store()), timedelta.max, group.group_name)
    capabilities = Capabilities(frozenset(), ProcessGroupCommunicator.reductions_of(transport))
    verbs = Verbs(ProcessGroupCommunicator(group), seen, capabilities)
    _adopted.setdefault(group, {})[kind] = verbs
    return verbs


def _transports(group: dist.ProcessGroup) -> dict[str, str]:
    """Return which of torch's backends carries tensors on each type of device: {"cpu": "gloo", "cuda": "nccl"}."""
    return dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))


def _is_open(group: dist.ProcessGroup) -> bool:
    try:
        dist.get_backend(group)
    except ValueError:
        return False
    return True
