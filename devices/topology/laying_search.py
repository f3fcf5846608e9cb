"""A search through all orders of the devices, which leaves out those that a bound shows to be no faster."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from devices.topology.laying_dense import members
from devices.topology.rings import Axis, Cost, Floats, Mask

FEW = 6
"""Where a place can have so many devices at the most, what its neighbours can have is looked at too."""


class _Near(NamedTuple):
    """Which devices may be neighbours along an axis that takes less than a limit."""

    seconds: float
    around: tuple[int, ...]


class _Reached(NamedTuple):
    """What the devices that are placed say along an axis: as in `Loads`, and what the axis takes at least."""

    loads: Floats
    alone: float
    latency: float
    taken: float


class _OutOfStepsError(Exception):
    """The search has taken all its steps."""


@final
class Search:
    """A search for an order that is faster than one that is known.

    The mesh looks the same from all its places, so that the first device has the first of them. Then the place with
    the fewest devices that it could still have is filled, with each of them in turn, the cheapest first.

    Args:
        cost: what an order takes; it has a table of loads.
        floors: what each axis takes at least.
    """

    def __init__(self, cost: Cost, floors: Sequence[float]) -> None:
        assert cost.loads is not None
        self._cost = cost
        self._floors = list(floors)
        self._loads = cost.loads
        self._links = cost.loads.links
        self._count = cost.count
        self._axes = [(place, axis) for place, axis in enumerate(cost.axes) if axis.pairs]
        # Of each place its neighbours along each axis; the one in a ring of two counts twice.
        self._around: list[list[list[int]]] = [[[] for _ in self._axes] for _ in range(self._count)]
        for number, (_, axis) in enumerate(self._axes):
            for one, other in axis.pairs:
                self._around[one][number].append(other)
                self._around[one if axis.length == 2 else other][number].append(other if axis.length == 2 else one)
        self._nearer = [self._limits(place, axis) for place, axis in self._axes]
        self._order: tuple[int, ...] = ()
        self._seconds = self._limit = math.inf
        self._left = 0
        self._placed: dict[int, int] = {}

    def _limits(self, place: int, axis: Axis) -> list[_Near]:
        """Return which devices may be neighbours along an axis, if it may take so long."""
        alone = np.maximum(self._links.max(2), self._loads.alone) * (axis.flows * axis.share)
        pairs = np.maximum(alone + axis.steps * self._loads.latency, self._floors[place])
        np.fill_diagonal(pairs, math.inf)
        limits: list[float] = []
        for seconds in np.unique(pairs).tolist():
            if not limits or seconds > limits[-1] * (1 + 1e-9):
                limits.append(seconds)
        # What an axis takes is to be below the limit.
        return [_Near(limit, tuple(map(_mask, pairs < limit * (1 - 1e-12)))) for limit in limits]

    def improve(self, order: Sequence[int], enough: float, steps: int) -> tuple[tuple[int, ...], bool]:
        """Return the fastest order that is found, and whether no order is faster.

        Args:
            order: the best that is known.
            enough: what no order goes below.
            steps: how many devices may be looked at for places.
        """
        self._order, self._seconds, self._left = tuple(order), self._cost.of(order), steps
        try:
            while self._seconds > enough * (1 + 1e-9):
                if not self._faster():
                    break
        except _OutOfStepsError:
            return self._order, False
        return self._order, True

    def _faster(self) -> bool:
        """Find an order that is faster; return whether there is one."""
        self._limit = self._seconds * (1 - 1e-9)
        everyone = (1 << self._count) - 1
        self._placed = {0: 0}
        floors = [self._floors[place] for place, _ in self._axes]
        near = self._near(floors)
        domains = self._narrowed(dict.fromkeys(range(self._count), everyone), near, [0])
        if domains is None:
            return False
        nothing = np.zeros(self._links.shape[2])
        return self._fill(domains, near, [_Reached(nothing, 0.0, 0.0, floor) for floor in floors])

    def _near(self, taken: Sequence[float]) -> list[_Near]:
        """Return for each axis which devices may be neighbours, if the axes take so long already."""
        total = math.fsum(taken)
        return [
            near[
                bisect.bisect_left(near, (self._limit - (total - seconds)) * (1 - 1e-12), key=lambda each: each.seconds)
            ]
            for near, seconds in zip(self._nearer, taken, strict=True)
        ]

    def _narrowed(self, domains: dict[int, int], near: Sequence[_Near], changed: list[int]) -> dict[int, int] | None:
        """Return the devices that each open place can have; None where one can have none.

        Args:
            domains: what was known before.
            near: which devices may be neighbours.
            changed: the places whose neighbours are to be looked at again.
        """
        found = dict(domains)
        for place in changed:
            if place in self._placed and place in found:
                found.pop(place)
                without = ~(1 << self._placed[place])
                for other in found:
                    found[other] &= without
        waiting = list(changed)
        while waiting:
            place = waiting.pop()
            device = self._placed.get(place)
            domain = found[place] if device is None else 0
            if device is None and domain.bit_count() > FEW:
                continue
            around = []
            for masks, others in zip(near, self._around[place], strict=True):
                fit = masks.around[device] if device is not None else _union(masks.around, domain)
                for other in others:
                    if other in found:
                        around.append(other)
                        if found[other] & ~fit:
                            found[other] &= fit
                            if not found[other]:
                                return None
                            waiting.append(other)
            # So many places cannot have fewer devices among them.
            union = 0
            for number, domain in enumerate(sorted((found[other] for other in set(around)), key=int.bit_count), 1):
                union |= domain
                if union.bit_count() < number:
                    return None
        return found if all(found.values()) else None

    def _fill(self, domains: dict[int, int], near: Sequence[_Near], reached: Sequence[_Reached]) -> bool:
        if not domains:
            order = tuple(self._placed[place] for place in range(self._count))
            found = self._cost.of(order)
            if found < self._limit:
                self._order, self._seconds = order, found
                return True
            return False
        place = min(domains, key=lambda each: domains[each].bit_count())
        candidates = members(domains[place])
        self._left -= len(candidates) + 5
        if self._left < 0:
            raise _OutOfStepsError
        totals = np.zeros(len(candidates))
        states: list[tuple[Floats, Floats, Floats, Floats] | None] = []
        for number, (whole, axis) in enumerate(self._axes):
            beside = [self._placed[other] for other in self._around[place][number] if other in self._placed]
            if not beside:
                totals += reached[number].taken
                states.append(None)
                continue
            before, pairs = reached[number], np.ix_(candidates, beside)
            added = self._links[pairs].sum(1) + before.loads
            slow = np.maximum(self._loads.alone[pairs].max(1) * axis.flows, before.alone)
            far = np.maximum(self._loads.latency[pairs].max(1), before.latency)
            taken = np.maximum(np.maximum(added.max(1), slow) * axis.share + far * axis.steps, self._floors[whole])
            totals += taken
            states.append((added, slow, far, taken))
        for at in np.argsort(totals, kind="stable").tolist():
            if totals[at] >= self._limit:
                break
            self._placed[place] = candidates[at]
            then = [
                old if new is None else _Reached(new[0][at], *(float(each[at]) for each in new[1:]))
                for old, new in zip(reached, states, strict=True)
            ]
            nearer = self._near([each.taken for each in then])
            is_same = all(one is other for one, other in zip(near, nearer, strict=True))
            narrowed = self._narrowed(domains, nearer, [place] if is_same else list(self._placed))
            if narrowed is not None and self._fill(narrowed, nearer, then):
                return True
            del self._placed[place]
        return False


def _mask(row: Mask) -> int:
    return sum(1 << place for place in np.flatnonzero(row).tolist())


def _union(masks: Sequence[int], chosen: int) -> int:
    found = 0
    for member in members(chosen):
        found |= masks[member]
    return found
