"""Trees that carry each device's data to all others: what a schedule is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import final

from devices.topology.symmetry import Numbers

Path = tuple[int, ...]
"""The nodes that data goes through from one device to another, both included; those between store nothing."""


@final
@dataclass(frozen=True)
class Forest:
    """Trees over all ranks, each of which carries some units of its root's data.

    Args:
        size: how many ranks there are.
        roots: the root of each tree, in the order of ranks.
        units: how much each tree carries.
        parents: `parents[tree, rank]` is where a rank gets its data from; itself at the root.
        depths: `depths[tree, rank]` is over how many ranks it has come.
        hops: `hops[tree, rank]` says on which path it comes from the parent; -1 at the root.
        path: gives the path of a source, a target and a hop.
        loads: the units that cross each arc, all trees together.
    """

    size: int
    roots: Numbers
    units: tuple[int, ...]
    parents: Numbers
    depths: Numbers
    hops: Numbers
    path: Callable[[int, int, int], Path] = field(repr=False)
    loads: Mapping[tuple[int, int], int] = field(repr=False)

    @property
    def total(self) -> int:
        """The units of all trees together."""
        return sum(self.units)

    def time(self, arcs: Mapping[tuple[int, int], int]) -> Fraction:
        """Return how long the fullest arc takes, for each unit of data and of capacity, if all data is 1."""
        return max(
            (Fraction(load, self.total * arcs[ends]) for ends, load in self.loads.items() if load), default=Fraction(0)
        )
