"""Which rank has which place of a mesh: on a topology that is given, or that the backend knows of this host."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from devices import _collectives
from devices._backend import Backend
from devices.errors import DevicesError, MeshError, TopologyError
from devices.topology.graph import Topology
from devices.topology.laying import layout


def order_on(
    topology: object, axes: Mapping[str, int], size: int, traffic: Mapping[str, int | float] | None
) -> tuple[int, ...]:
    """Return the ranks in the order of the mesh's places, rank r being that of the topology's device r."""
    if not isinstance(topology, Topology):
        said = repr(topology) if isinstance(topology, str) else f"an object of type {type(topology).__name__}"
        raise TopologyError(
            f"the topology of a mesh is a devices.topology.Topology of {size} devices, got {said}; of_target(name) of "
            "devices.topology makes one of a target of the catalogue, its part(number) one of a cluster's members, and "
            "read(file) reads one"
        )
    if len(topology.devices) != size:
        raise MeshError(f"{topology} has {len(topology.devices)} devices, and the world has {size} ranks")
    return layout(topology, axes, traffic).order


def order_here(
    backend: Backend,
    device: str,
    axes: Mapping[str, int],
    rank: int,
    size: int,
    on: torch.device,
    traffic: Mapping[str, int | float] | None,
) -> tuple[int, ...]:
    """Return the order on what the backend knows of this host, where its devices are those of the ranks, in order.

    All ranks call it, and have the order of rank 0; where one of them cannot use the topology, that of the ranks.
    """
    as_they_are = tuple(range(size))
    if size < 3 or type(backend).topology is Backend.topology:
        return as_they_are
    found = _found(backend, device, axes, rank, size, traffic)
    mine = torch.tensor([found is not None], dtype=torch.float32, device=on)
    if not _collectives.all_reduce(mine, op="min").item():
        return as_they_are
    order = torch.tensor(found, dtype=torch.int32, device=on)
    return tuple(_collectives.broadcast(order, src=0).tolist())


def _found(
    backend: Backend,
    device: str,
    axes: Mapping[str, int],
    rank: int,
    size: int,
    traffic: Mapping[str, int | float] | None,
) -> tuple[int, ...] | None:
    """Return the order that this rank would take; None where it cannot use the topology."""
    try:
        topology = backend.topology()
        if topology is None or len(topology.devices) != size or topology.devices[rank].name != device:
            return None
        return layout(topology, axes, traffic).order
    except DevicesError:
        # It contradicts itself, or says nothing of bandwidths: `devices.topology.discover()` tells.
        return None
