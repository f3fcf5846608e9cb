"""`place()`: how a tensor, or a module's parameters, lie on a mesh."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TypeVar, overload

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement

from devices._fabric_memory import empty
from devices.errors import PlacementError, did_you_mean

Module = TypeVar("Module", bound=nn.Module)
Plan = Mapping[str, ParallelStyle | Placement | Mapping[str, Placement]]


@overload
def place(
    value: torch.Tensor, mesh: DeviceMesh, plan: None = None, *, fabric: bool = False, **placements: Placement
) -> DTensor: ...
@overload
def place(value: Module, mesh: DeviceMesh, plan: Plan) -> Module: ...
def place(
    value: torch.Tensor | Module,
    mesh: DeviceMesh,
    plan: Plan | None = None,
    *,
    fabric: bool = False,
    **placements: Placement,
) -> DTensor | Module:
    """Return `value` laid over `mesh`: a tensor as a DTensor, a module with its parameters replaced in place.

    The tensor given is the whole one; that of the mesh's first rank is what all ranks get, so the others' may
    differ. Sizes that the axis does not divide are split as `torch.chunk` splits them.

    Args:
        value: a leaf tensor, or a module.
        mesh: a mesh with named axes, for instance from `World.mesh`.
        plan: for a module, what becomes of it: name patterns, as `fnmatch` reads them, to one of torch's
            `ParallelStyle`s (the pattern names submodules, the mesh has one axis), to a placement (the pattern
            names parameters or buffers, the mesh has one axis), or to axis names with their placements.
        fabric: for a tensor, lay this rank's part in memory that the peers of the host reach, as `devices.empty` does.
        placements: for a tensor, a placement for each axis; an axis that is not named is replicated.

    Raises:
        PlacementError: an axis, a dim or a pattern that matches nothing, or a tensor that is no leaf.

    >>> import torch, devices
    >>> with devices.init() as world:
    ...     mesh = world.mesh({"dp": -1, "tp": 1})
    ...     devices.place(torch.arange(4.0), mesh, tp=devices.Shard(0)).placements
    (Replicate(), Shard(dim=0))
    """
    try:
        return _placed(value, mesh, plan, fabric, placements)
    except PlacementError as error:
        who = f"rank {dist.get_rank()} of {dist.get_world_size()}: " if dist.is_initialized() else ""
        raise PlacementError(f"{who}{error}") from error.__cause__


def _placed(
    value: torch.Tensor | Module, mesh: DeviceMesh, plan: Plan | None, fabric: bool, placements: Mapping[str, Placement]
) -> DTensor | Module:
    if not isinstance(mesh, DeviceMesh):
        raise PlacementError(f"place() lays on a DeviceMesh, as world.mesh({{'tp': -1}}) returns; got {mesh!r}")
    if isinstance(value, nn.Module):
        if placements or fabric or plan is None:
            raise PlacementError("a module is placed by a plan: place(module, mesh, {'*.weight': Shard(0)})")
        _place_module(value, mesh, plan)
        return value
    if not isinstance(value, torch.Tensor):
        raise PlacementError(f"place() takes a tensor or a module, got {type(value).__name__}")
    if plan is not None:
        raise PlacementError("a tensor is placed by axis: place(x, mesh, tp=Shard(0)); a plan is for a module")
    placed = _place_tensor(value, mesh, placements)
    return _in_fabric_memory(placed) if fabric else placed


def _in_fabric_memory(placed: DTensor) -> DTensor:
    local = placed.to_local().detach()
    moved = empty(*local.shape, dtype=local.dtype, fabric=True).copy_(local)
    laid = DTensor.from_local(
        moved, placed.device_mesh, placed.placements, run_check=False, shape=placed.shape, stride=placed.stride()
    )
    laid.requires_grad_(placed.requires_grad)
    return laid


def _place_tensor(tensor: torch.Tensor, mesh: DeviceMesh, placements: Mapping[str, Placement]) -> DTensor:
    laid = _in_mesh_order(mesh, placements, tensor)
    if isinstance(tensor, DTensor):
        if tensor.device_mesh == mesh and tensor.placements == laid:
            return tensor
        raise PlacementError(
            f"the tensor lies already on {tensor.device_mesh} as {tensor.placements}; "
            "x.redistribute(placements=...) moves it to other placements"
        )
    if not tensor.is_leaf:
        raise PlacementError(
            "place() takes a leaf tensor, and this one was computed from others that require grad; place those, "
            "detach() it, or build it by DTensor.from_local"
        )
    return distribute_tensor(tensor, mesh, laid)


def _in_mesh_order(
    mesh: DeviceMesh, placements: Mapping[str, Placement], tensor: torch.Tensor
) -> tuple[Placement, ...]:
    """Return one placement for each axis of `mesh`, each checked against the tensor's dims."""
    axes = _axes(mesh)
    for axis, placement in placements.items():
        if axis not in axes:
            raise PlacementError(
                f"the mesh has no axis {axis!r}{did_you_mean(axis, axes)}; its axes are {', '.join(axes)}"
            )
        if not isinstance(placement, Placement):
            raise PlacementError(f"{axis}={placement!r} is no placement; use Shard(dim), Replicate() or Partial()")
        if isinstance(placement, Shard) and not -tensor.ndim <= placement.dim < tensor.ndim:
            raise PlacementError(
                f"{axis}={placement}: the tensor of shape {tuple(tensor.shape)} has no dim {placement.dim}; "
                f"it has {tensor.ndim}" + (f", 0 to {tensor.ndim - 1}" if tensor.ndim else "")
            )
    return tuple(_from_front(placements.get(axis, Replicate()), tensor.ndim) for axis in axes)


def _from_front(placement: Placement, dims: int) -> Placement:
    """Return `placement` with its dim counted from the front, as a DTensor spells it."""
    return Shard(placement.dim % dims) if type(placement) is Shard else placement


def _axes(mesh: DeviceMesh) -> tuple[str, ...]:
    if mesh.mesh_dim_names is None:
        raise PlacementError("the mesh's axes have no names; build it by world.mesh({'dp': -1, 'tp': 2})")
    return mesh.mesh_dim_names


def _place_module(module: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    # All is checked before anything is changed.
    modules = [name for name, _ in module.named_modules() if name]
    tensors: dict[str, torch.Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    styles: dict[str, ParallelStyle] = {}
    laid: dict[str, tuple[Placement, ...]] = {}
    for pattern, wish in plan.items():
        if isinstance(wish, ParallelStyle):
            _one_axis(mesh, pattern, wish)
            styles |= dict.fromkeys(_matching(pattern, modules, "submodule"), wish)
            continue
        by_axis = wish if isinstance(wish, Mapping) else {_one_axis(mesh, pattern, wish): wish}
        for name in _matching(pattern, tensors, "parameter or buffer"):
            laid[name] = _in_mesh_order(mesh, by_axis, tensors[name])
    for name, style in styles.items():
        parallelize_module(module.get_submodule(name), mesh, style)
    persistent = module.state_dict().keys()
    placed: dict[int, torch.Tensor] = {}
    for name, placements in laid.items():
        old = tensors[name]
        # A tensor that two submodules share is placed once, and stays shared.
        if id(old) not in placed:
            laid_out = distribute_tensor(old.detach(), mesh, placements)
            is_parameter = isinstance(old, nn.Parameter)
            placed[id(old)] = nn.Parameter(laid_out, old.requires_grad) if is_parameter else laid_out
        owner_name, _, leaf = name.rpartition(".")
        owner, new = module.get_submodule(owner_name), placed[id(old)]
        if isinstance(new, nn.Parameter):
            owner.register_parameter(leaf, new)
        else:
            owner.register_buffer(leaf, new, persistent=name in persistent)


def _one_axis(mesh: DeviceMesh, pattern: str, wish: object) -> str:
    axes = _axes(mesh)
    if len(axes) != 1:
        raise PlacementError(
            f"{pattern!r}: {type(wish).__name__} acts along one axis, but the mesh has {len(axes)} "
            f"({', '.join(axes)}); pass mesh[{axes[-1]!r}], or name the axes: {{{axes[-1]!r}: Shard(0)}}"
        )
    return axes[0]


def _matching(pattern: str, names: Iterable[str], what: str) -> list[str]:
    names = list(names)
    found = fnmatch.filter(names, pattern)
    if not found:
        raise PlacementError(
            f"the pattern {pattern!r} matches no {what}{did_you_mean(pattern, names)}; "
            f"there are: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        )
    return found
