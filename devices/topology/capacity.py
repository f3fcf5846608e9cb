"""A topology as whole numbers: what bounds and schedules are computed on, without rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, final

from devices.topology.graph import Topology


@final
@dataclass(frozen=True)
class Capacities:
    """Nodes by number, and what goes from one to another, in a unit that makes all of it whole.

    Args:
        size: how many nodes there are.
        endpoints: the numbers of the devices, in rank order.
        arcs: for each source and target the capacity, the links between them together.
        unit: bytes per second of a capacity of 1.
        colours: a number for each node; two that have different ones are not alike, whatever their links.
    """

    size: int
    endpoints: tuple[int, ...]
    arcs: dict[tuple[int, int], int]
    unit: Fraction
    colours: tuple[int, ...]
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was found out about it, so that it is not looked for twice."""

    @staticmethod
    def of(topology: Topology) -> Capacities:
        """Return the capacities of a topology.

        Raises:
            TopologyError: it is not connected, or a bandwidth is not known.
        """
        topology.require_bandwidths()
        topology.require_connected()
        places = {node.name: place for place, node in enumerate(topology.nodes)}
        rates: dict[tuple[int, int], Fraction] = {}
        for link in topology.links:
            ends = places[link.source], places[link.target]
            rates[ends] = rates.get(ends, Fraction(0)) + Fraction(link.bandwidth or 0)
        below = math.lcm(*(rate.denominator for rate in rates.values()))
        unit = Fraction(math.gcd(*(int(rate * below) for rate in rates.values())) or 1, below)
        return Capacities(
            len(topology.nodes),
            tuple(place for place, node in enumerate(topology.nodes) if node.is_device),
            {ends: int(rate / unit) for ends, rate in rates.items()},
            unit,
            tuple(1 if node.is_device else 3 if node.reduces else 2 for node in topology.nodes),
        )

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every link is as fast in the other direction."""
        return all(self.arcs.get((target, source)) == capacity for (source, target), capacity in self.arcs.items())

    @cached_property
    def entering(self) -> tuple[int, ...]:
        """For each node, the capacity of what enters it."""
        found = [0] * self.size
        for (_, target), capacity in self.arcs.items():
            found[target] += capacity
        return tuple(found)

    def reversed(self) -> Capacities:
        """Return the same with every arc the other way."""
        return self._reversed

    @cached_property
    def _reversed(self) -> Capacities:
        arcs = {(target, source): capacity for (source, target), capacity in self.arcs.items()}
        return Capacities(self.size, self.endpoints, arcs, self.unit, self.colours)

    def narrowed(self) -> Capacities | None:
        """Return the same with each link as slow as its reverse is, or None if those do not join all nodes."""
        arcs = {
            (source, target): min(capacity, self.arcs[target, source])
            for (source, target), capacity in self.arcs.items()
            if (target, source) in self.arcs
        }
        after: list[list[int]] = [[] for _ in range(self.size)]
        for source, target in arcs:
            after[source].append(target)
        found, frontier = {0}, [0]
        while frontier:
            for other in after[frontier.pop()]:
                if other not in found:
                    found.add(other)
                    frontier.append(other)
        return None if len(found) < self.size else Capacities(self.size, self.endpoints, arcs, self.unit, self.colours)

    def into(self, inside: Sequence[bool]) -> int:
        """Return the capacity that enters a set of nodes."""
        return sum(
            capacity for (source, target), capacity in self.arcs.items() if inside[target] and not inside[source]
        )
