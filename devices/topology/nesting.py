"""Which axis of a mesh is nearest, on a target of which only the structure is known: up to a million chips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from devices.catalogue import Target, load
from devices.errors import ArgumentError, MeshError
from devices.topology.axes import along, strides
from devices.topology.estimate import Estimate
from devices.topology.machine import Machine, machine_of

Number = int | float


@final
@dataclass(frozen=True, slots=True)
class Nesting:
    """How the axes of a mesh lie in a target's domains.

    Args:
        strides: how far apart the neighbours of each axis are; the rank of a place is the sum of what it is along each
            axis times the stride, ranks filling chips, nodes and domains one after the other.
        by_axis: how an all-reduce of each axis's traffic goes, all its groups at once.
    """

    strides: Mapping[str, int] = field(hash=False)
    by_axis: Mapping[str, Estimate] = field(hash=False)

    @property
    def seconds(self) -> float:
        """What is expected of all axes, one after the other."""
        return sum(each.seconds.expected for each in self.by_axis.values())

    def rank(self, place: Mapping[str, int]) -> int:
        """Return the rank that has a place of the mesh."""
        return sum(place[name] * stride for name, stride in self.strides.items())


def nest(on: str | Target | Machine, axes: Mapping[str, int], traffic: Mapping[str, Number]) -> Nesting:
    """Return the nesting of a mesh's axes in which their traffic takes least time; every order of them is tried.

    Args:
        on: a target, its name, or a machine.
        axes: the length of each axis; together they fill as many domains as they need.
        traffic: the bytes of each axis: how much its all-reduces add up to, for each rank.

    Raises:
        MeshError: an axis is no length, or the ranks are more than a target has.
        TopologyError: a figure that the time depends on is not known.

    >>> nest("p5.48xlarge", {"tp": 8, "dp": 2}, {"tp": 1e10, "dp": 1e8}).strides
    {'tp': 1, 'dp': 8}
    """
    target = load(on) if isinstance(on, str) else on
    machine = target if isinstance(target, Machine) else machine_of(target)
    if not axes:
        raise MeshError("a mesh needs at least one axis, for instance {'dp': 8}")
    for name, length in axes.items():
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise MeshError(f"axis {name!r} must be a whole number of at least 1, got {length!r}")
        size = traffic.get(name, 0)
        if not isinstance(size, (int, float)) or isinstance(size, bool) or not 0 <= size < math.inf:
            raise ArgumentError(f"the traffic of axis {name!r} is a number of bytes, got {size!r}")
    if unknown := [name for name in traffic if name not in axes]:
        raise MeshError(f"traffic is said of an axis {unknown[0]!r}, and there are {', '.join(axes)}")
    ranks = math.prod(axes.values())
    if machine.total is not None and ranks > machine.ranks:
        raise MeshError(f"the axes need {ranks} ranks, and {machine.name} has {machine.ranks}")
    every = (strides({name: axes[name] for name in names}) for names in itertools.permutations(axes))
    return min((_nested(machine, axes, traffic, apart) for apart in every), key=lambda found: found.seconds)


def _nested(
    machine: Machine, axes: Mapping[str, int], traffic: Mapping[str, Number], apart: Mapping[str, int]
) -> Nesting:
    return Nesting(
        {name: apart[name] for name in axes},
        {name: along("all_reduce", traffic.get(name, 0), machine, axes[name], apart[name]) for name in axes},
    )
