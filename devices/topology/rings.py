"""What an order of the devices takes: along each axis of a mesh rings, all at once, both ways round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np

from devices.topology.paths import Paths

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

DENSE = 1 << 22
"""What each two devices load on each link is kept as one table of so many numbers, at the most."""


@final
@dataclass(frozen=True)
class Axis:
    """The rings along an axis.

    Args:
        length: how many places each has.
        pairs: the places that are next to each other; those of a ring of two twice, as they are on both sides.
        share: the bytes that each of a pair says to the other.
        steps: how many messages follow each other.
        flows: how many shares go from one device to one neighbour.
    """

    length: int
    pairs: tuple[tuple[int, int], ...]
    share: float
    steps: int
    flows: int

    def on(self, sizes: Sequence[int], axis: int) -> Axis:
        """Return the same rings as an axis of another mesh.

        Args:
            sizes: the length of each axis of that mesh, the last varying fastest.
            axis: which of them it is.
        """
        return replace(self, pairs=tuple(_neighbours(sizes, axis)) if self.pairs else ())


def axes_of(sizes: Sequence[int], weights: Sequence[float]) -> list[Axis]:
    """Return the rings of each axis; those of one that has nothing to say have no pairs.

    Args:
        sizes: the length of each axis, the last varying fastest.
        weights: the bytes of each axis.
    """
    found = []
    for axis, (length, weight) in enumerate(zip(sizes, weights, strict=True)):
        if length == 1 or not weight:
            found.append(Axis(length, (), 0.0, 0, 1))
            continue
        # Each rank passes 2 (n - 1) / n of the bytes on, half of them each way round.
        share = 2 * (length - 1) / length * weight / 2
        found.append(Axis(length, tuple(_neighbours(sizes, axis)), share, 2 * (length - 1), 2 if length == 2 else 1))
    return found


@final
@dataclass(frozen=True)
class Loads:
    """What each two devices load on the links when they say a byte to each other.

    Args:
        count: how many devices there are.
        links: seconds of each link.
        alone: seconds that it takes if nothing else is said.
        latency: seconds of the links on the way.
        hops: how many they are.
    """

    count: int
    links: Floats
    alone: Floats
    latency: Floats
    hops: Floats

    @staticmethod
    def of(paths: Paths, count: int) -> Loads:
        """Return the loads of a topology's devices.

        Args:
            paths: how bytes go.
            count: how many devices there are.
        """
        links = np.zeros((count, count, paths.links))
        alone, latency, hops = (np.zeros((count, count)) for _ in range(3))
        for one in range(count):
            for other in range(one):
                row = links[one, other]
                for source, target in ((one, other), (other, one)):
                    way = paths.between(source, target)
                    alone[one, other] = max(alone[one, other], way.alone)
                    latency[one, other] = max(latency[one, other], way.latency)
                    hops[one, other] = max(hops[one, other], way.hops)
                    for link, part in way.parts:
                        row[link] += part * paths.seconds_per_byte[link]
                links[other, one] = row
                alone[other, one] = alone[one, other]
                latency[other, one] = latency[one, other]
                hops[other, one] = hops[one, other]
        return Loads(count, links, alone, latency, hops)


class _Between(NamedTuple):
    """The links between two devices, with the seconds of each, and as in `Loads` what all of it takes."""

    links: np.ndarray[Any, np.dtype[np.int64]]
    seconds: Floats
    alone: float
    latency: float


class Cost:
    """What an order takes.

    Args:
        paths: how bytes go.
        count: how many devices there are.
        axes: the rings.
    """

    def __init__(self, paths: Paths, count: int, axes: Sequence[Axis]) -> None:
        self.paths = paths
        self.count = count
        self.axes = tuple(axes)
        self._said: dict[tuple[int, int], _Between] = {}
        self._ends = [np.array(axis.pairs, dtype=np.int64).reshape(-1, 2).T for axis in axes]

    @cached_property
    def loads(self) -> Loads | None:
        """The table of all loads, if it is not too large."""
        is_small = self.count**2 * self.paths.links <= DENSE
        return Loads.of(self.paths, self.count) if is_small else None

    def of(self, order: Sequence[int]) -> float:
        """Return the seconds of all axes."""
        return sum(self.by_axis(order))

    def by_axis(self, order: Sequence[int]) -> list[float]:
        """Return the seconds of each axis."""
        return [self._along(place, order) if axis.pairs else 0.0 for place, axis in enumerate(self.axes)]

    def _along(self, place: int, order: Sequence[int]) -> float:
        axis, loads = self.axes[place], self.loads
        if loads is None:
            return self._walked(axis, order)
        ends = np.asarray(order)[self._ends[place]]
        busiest = float(loads.links[ends[0], ends[1]].sum(0).max())
        alone = float(loads.alone[ends[0], ends[1]].max()) * axis.flows
        return max(busiest, alone) * axis.share + axis.steps * float(loads.latency[ends[0], ends[1]].max())

    def _walked(self, axis: Axis, order: Sequence[int]) -> float:
        """Return the seconds of an axis, looking only for the ways that it needs."""
        said = [self._between(order[one], order[other]) for one, other in axis.pairs]
        load = np.bincount(
            np.concatenate([each.links for each in said]), np.concatenate([each.seconds for each in said])
        )
        slowest = max(each.alone for each in said) * axis.flows
        return max(float(load.max()), slowest) * axis.share + axis.steps * max(each.latency for each in said)

    def _between(self, one: int, other: int) -> _Between:
        """Return what two devices load when they say a byte to each other."""
        key = (one, other) if one < other else (other, one)
        if key not in self._said:
            ways = self.paths.between(one, other), self.paths.between(other, one)
            links = np.array([link for way in ways for link, _ in way.parts], dtype=np.int64)
            parts = [part * self.paths.seconds_per_byte[link] for way in ways for link, part in way.parts]
            self._said[key] = _Between(
                links, np.array(parts), max(way.alone for way in ways), max(way.latency for way in ways)
            )
        return self._said[key]


def _neighbours(sizes: Sequence[int], axis: int) -> Iterator[tuple[int, int]]:
    """Yield the places of a mesh that are next to each other in the rings along an axis."""
    length, stride = sizes[axis], math.prod(sizes[axis + 1 :])
    for place in range(math.prod(sizes)):
        at = place // stride % length
        yield place, place + stride * ((at + 1) % length - at)
