"""Which device has which place of a mesh, so that what its axes say to each other takes least time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final, overload

from devices.errors import ArgumentError, MeshError
from devices.topology.clusters import Cluster
from devices.topology.factors import factored
from devices.topology.graph import Topology
from devices.topology.laying_bound import Bounds
from devices.topology.laying_improved import improved
from devices.topology.laying_twisted import twisted
from devices.topology.nesting import Nesting, nest
from devices.topology.paths import Paths
from devices.topology.rings import Cost, axes_of

Number = int | float

TRIED = 100_000
"""The devices of all layouts together, at the most, that are tried as axes have whole factors of the topology's."""

_EQUAL = 1 + 1e-9


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Where the places of a mesh are.

    Args:
        axes: the length of each axis, the last varying fastest.
        order: for each place of the mesh, in that order, the rank of the device that has it.
        seconds: what the traffic of all axes takes, one axis after the other.
        by_axis: what each axis takes of that.
        bound: seconds that no order goes below.
        proven: whether no order is faster, since it takes no longer than `bound` or since a search has left out none
            that could be.
    """

    axes: Mapping[str, int] = field(hash=False)
    order: tuple[int, ...]
    seconds: float
    by_axis: Mapping[str, float] = field(hash=False)
    bound: float
    proven: bool

    @property
    def ratio(self) -> float:
        """How many times as long as `bound` it takes; where it is not proven, no order is faster by more than that."""
        return self.seconds / self.bound if self.bound else 1.0


@overload
def layout(topology: Topology, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None) -> Layout: ...
@overload
def layout(topology: Cluster, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None) -> Nesting: ...
def layout(
    topology: Topology | Cluster, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None
) -> Layout | Nesting:
    """Lay a mesh on a topology so that the predicted time of its traffic is least.

    Along each axis the groups do a ring all-reduce, all at once, both ways round. Bytes go by the shortest paths, in
    equal parts where there are several; on a torus along its first axis first. An axis takes as long as the link that
    most of them meet, and at least as long as a message that meets no other: devices on the way pass it on when they
    have all of it, switches as it comes.

    Args:
        topology: it is connected, and the bandwidths of its links are known. On a cluster the mesh is one of ranks, of
            which a chip may have several, and `nest` says how far apart the neighbours of each axis are.
        axes: the length of each axis, the last varying fastest; they multiply to the number of devices.
        traffic: the bytes of each axis: how much its all-reduces add up to, for each device. Without it the last axis
            has the most, each before it a tenth of the next, as in `world.mesh({"dp": ..., "tp": ...})`.

    Raises:
        MeshError: the axes do not fit the devices.
        TopologyError: the topology is not connected, or a bandwidth is not known.

    >>> from devices.topology import torus
    >>> found = layout(torus((4, 4), 50e9), {"dp": 4, "tp": 4})
    >>> found.order[:4], found.proven
    ((0, 1, 2, 3), True)
    """
    lengths = dict(axes)
    if isinstance(topology, Cluster):
        return nest(topology.target, lengths, dict(zip(lengths, _weights(lengths, traffic), strict=True)))
    cost = _cost(topology, lengths, traffic)
    bounds = Bounds(topology, cost)
    enough = bounds.seconds * _EQUAL
    order, seconds = tuple(range(cost.count)), math.inf
    sizes, most = tuple(lengths.values()), max(8, TRIED // cost.count)
    for tried in itertools.islice(factored(topology, sizes), most):
        found = cost.of(tried)
        if found < seconds / _EQUAL:
            order, seconds = tried, found
        if seconds <= enough:
            break
    else:
        order = twisted(order, sizes, cost, most)
        seconds = cost.of(order)
    bound, is_proven = bounds.seconds, seconds <= enough
    if not is_proven and cost.loads is not None:
        order, bound, is_proven = improved(topology, cost, bounds, order)
    by_axis = dict(zip(lengths, cost.by_axis(order), strict=True))
    seconds = sum(by_axis.values())
    return Layout(lengths, order, seconds, by_axis, min(bound, seconds), is_proven)


def layout_seconds(
    topology: Topology, axes: Mapping[str, int], order: Sequence[int], traffic: Mapping[str, Number] | None = None
) -> dict[str, float]:
    """Return what the traffic of each axis takes when the devices have the places of a mesh in this order.

    Raises:
        MeshError: the axes or the order do not fit the devices.
    """
    lengths = dict(axes)
    cost = _cost(topology, lengths, traffic)
    if sorted(order) != list(range(len(topology.devices))):
        raise MeshError(f"an order names each of {len(topology.devices)} devices once, got {tuple(order)!r}")
    return dict(zip(lengths, cost.by_axis(tuple(order)), strict=True))


def _cost(topology: Topology, axes: Mapping[str, int], traffic: Mapping[str, Number] | None) -> Cost:
    count = len(topology.devices)
    rings = axes_of(_sizes(axes, count), _weights(axes, traffic))
    return Cost(Paths(topology), count, rings)


def _sizes(axes: Mapping[str, int], count: int) -> tuple[int, ...]:
    if not axes:
        raise MeshError("a mesh needs at least one axis, for instance {'dp': 8}")
    for name, length in axes.items():
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise MeshError(f"axis {name!r} must be a whole number of at least 1, got {length!r}")
    asked = ", ".join(f"{name}={length}" for name, length in axes.items())
    if math.prod(axes.values()) != count:
        raise MeshError(f"the axes {asked} need {math.prod(axes.values())} devices, and the topology has {count}")
    return tuple(axes.values())


def _weights(axes: Mapping[str, int], traffic: Mapping[str, Number] | None) -> list[float]:
    if traffic is None:
        return [10.0 ** -(len(axes) - 1 - place) * 1e9 for place in range(len(axes))]
    for name, value in traffic.items():
        if name not in axes:
            raise MeshError(f"traffic is said of an axis {name!r}, and there are {', '.join(axes)}")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ArgumentError(f"the traffic of axis {name!r} is a number of bytes, got {value!r}")
    return [float(traffic.get(name, 0)) for name in axes]
