"""Seconds that no order of the devices goes below: what each axis takes at least, and what they take together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.cuts import into_part
from devices.topology.graph import Topology
from devices.topology.rings import Axis, Cost, Floats, Loads, Mask

Kinds = tuple[float, float, float]
"""Seconds as no device has a neighbour in another domain, as some have one but none two, and as some have two."""

LEVELS = 6
"""So many ways to fall into domains are looked at, the nearest neighbours first."""


@final
@dataclass(frozen=True, slots=True)
class Domain:
    """Devices that are nearer to each other than to all others.

    Args:
        members: their ranks.
        capacity: bytes per second that can come in from others.
    """

    members: tuple[int, ...]
    capacity: float


class Bounds:
    """What no order goes below.

    Args:
        topology: the topology.
        cost: what an order takes.
    """

    def __init__(self, topology: Topology, cost: Cost) -> None:
        self._axes = cost.axes
        self._loads = loads = cost.loads
        if loads is None:
            self.levels: list[list[Domain]] = []
            self.by_axis = [_coarse(cost, axis) for axis in cost.axes]
            self.seconds = sum(self.by_axis)
            return
        self._tables = [_Tables(loads, device) for device in range(loads.count)] if loads.count > 1 else []
        capacities = Capacities.of(topology)
        busy, late, far = (
            list(_levels(capacities, each))
            for each in (np.maximum(loads.links.max(2), loads.alone), loads.latency, loads.hops)
        )
        self.levels = [*busy, *late, *far]
        """Ways in which the devices fall into domains."""
        self.by_axis = [self._alone(axis) for axis in cost.axes]
        """What each axis takes at least."""
        # The neighbours that are busiest need not be those that are farthest.
        without = [replace(axis, steps=0) for axis in cost.axes], [replace(axis, share=0.0) for axis in cost.axes]
        self.seconds = max(
            self._all(cost.axes, busy + late + far),
            self._all(without[0], busy + far) + self._all(without[1], late),
        )
        """What all axes together take at least."""

    def kinds(self, domains: Sequence[Domain]) -> list[Kinds]:
        """Return what each axis takes at least, as devices have neighbours in other domains."""
        assert self._loads is not None
        return self._kinds(self._axes, self.by_axis, domains)

    def _alone(self, axis: Axis) -> float:
        everyone = np.ones(len(self._tables), dtype=bool)
        return max(table.least(axis, everyone, everyone) for table in self._tables) if axis.pairs else 0.0

    def _all(self, axes: Sequence[Axis], levels: Sequence[Sequence[Domain]]) -> float:
        floors = [self._alone(axis) for axis in axes]
        return max([sum(floors), *(self._together(axes, floors, domains) for domains in levels)])

    def _together(self, every: Sequence[Axis], floors: Sequence[float], domains: Sequence[Domain]) -> float:
        """Return what all axes take at least, as not all of them can stay within domains.

        Of each axis either no two neighbours are in two domains; or some are, and each device has one in its own; or
        there is one that has none.
        """
        axes = [number for number, axis in enumerate(every) if axis.length > 1]
        kinds = self._kinds([every[number] for number in axes], [floors[number] for number in axes], domains)
        different = {(len(domain.members), domain.capacity) for domain in domains}
        smallest = min(size for size, _ in different)
        least = math.inf
        for choice in itertools.product(range(3), repeat=len(axes)):
            floor = [kind[chosen] for kind, chosen in zip(kinds, choice, strict=True)]
            if sum(floor) >= least:
                continue
            lengths = [every[number].length for number in axes]
            whole = math.prod(length for length, chosen in zip(lengths, choice, strict=True) if chosen == 0)
            if any(size % whole for size, _ in different) or whole * 2 ** choice.count(1) > smallest:
                continue
            runs = [length for length, chosen in zip(lengths, choice, strict=True) if chosen == 1]
            if not all(_has_runs(size // whole, length) for size, _ in different for length in runs):
                continue
            inner = sum(value for value, chosen in zip(floor, choice, strict=True) if chosen == 0)
            outer = [
                (length, chosen == 1, value, 2 * whole * every[number].share)
                for number, length, value, chosen in zip(axes, lengths, floor, choice, strict=True)
                if chosen
            ]
            found = max(_crossing(size // whole, outer, capacity, least - inner) for size, capacity in different)
            least = min(least, inner + found)
        return least

    def _kinds(self, axes: Sequence[Axis], floors: Sequence[float], domains: Sequence[Domain]) -> list[Kinds]:
        """Return what axes take at least, as devices have none, some one or some two neighbours in other domains."""
        count = len(self._tables)
        masks = np.zeros((count, count), dtype=bool)
        for domain in domains:
            masks[np.ix_(domain.members, domain.members)] = True
        kinds: list[Kinds] = []
        for axis, floor in zip(axes, floors, strict=True):
            if not axis.pairs:
                kinds.append((0.0, 0.0, 0.0))
                continue
            costs = [
                [table.least(axis, near, far) for near, far in ((mask, mask), (mask, ~mask), (~mask, ~mask))]
                for table, mask in zip(self._tables, masks, strict=True)
            ]
            # All devices stay within, but one alone may be the one that does not.
            inside = max(cost[0] for cost in costs)
            half = math.inf if axis.length == 2 else max(floor, min(cost[1] for cost in costs))
            kinds.append((inside, half, max(floor, min(cost[2] for cost in costs))))
        return kinds


def _has_runs(size: int, length: int) -> bool:
    """Return whether so many devices can be in lines of a length so that none of them is alone, nor any of the others.

    A line of three has none or all of its devices there, one of four none, two or all.
    """
    return size >= 2 and size % {3: 3, 4: 2}.get(length, 1) == 0


def _crossing(size: int, axes: Sequence[tuple[int, bool, float, float]], capacity: float, limit: float) -> float:
    """Return what axes take at least to get out of a domain.

    A domain that meets some lines of each axis has no more devices than the product of those numbers, the number of
    axes less one being taken as the root (Loomis and Whitney). And if one of its devices is drawn at random, the means
    of the logarithms of how many are in its line of each axis add up to no more than that of all (Han). Each line that
    it meets without filling it leaves it at two ends.

    Args:
        size: the devices of the domain, those that axes within it join counted as one.
        axes: of each its length, whether each device has a neighbour in its domain, what the axis takes at least, and
            the bytes that leave for each line.
        capacity: bytes per second that can leave.
        limit: more is not looked for.
    """
    needed = size ** (len(axes) - 1)
    # The lines that are met, for each number of those that are not filled.
    met = [[some + (size - some) // length for some in range(size + 1)] for length, _, _, _ in axes]
    most = [max(each) for each in met]
    spread = [_spread(size, length, 2 if paired else 1) for length, paired, _, _ in axes]
    room = math.log2(size) + 1e-9
    chosen: list[int] = []
    least = limit

    def choose(axis: int, lines: int, used: float, taken: float) -> None:
        nonlocal least
        if axis == len(axes):
            if lines >= needed and (used < room - 2e-9 or _is_product(size, [each[0] for each in axes], chosen)):
                least = min(least, taken)
            return
        length, _, floor, share = axes[axis]
        after = math.prod(most[axis + 1 :])
        rest = sum(floor for _, _, floor, _ in axes[axis + 1 :])
        # The others of lines of two are two by two.
        for some in range(size % 2, size + 1, 2) if length == 2 else range(size + 1):
            count = met[axis][some]
            found = taken + max(floor, some * share / capacity)
            if found + rest >= least:
                return
            if lines * count * after >= needed and used + spread[axis][some] <= room:
                chosen.append(some)
                choose(axis + 1, lines * count, used + spread[axis][some], found)
                chosen.pop()

    choose(0, 1, 0.0, 0.0)
    return least


def _spread(size: int, length: int, fewest: int) -> list[float]:
    """Return the least mean logarithm of how many are in one's line, for each number of lines that are not filled.

    Args:
        size: how many there are in all lines.
        length: how many fill a line.
        fewest: how many there are at least in a line that is met.
    """
    # Of a device its part of a line that is not filled, and the logarithm.
    points = [(0.0 if count == length else 1 / count, math.log2(count)) for count in range(fewest, length + 1)]
    found = []
    for some in range(size + 1):
        part = some / size
        between = [
            low + (high - low) * (left - part) / (left - right)
            for (left, low), (right, high) in itertools.combinations(points, 2)
            if right <= part <= left
        ]
        found.append(min([*between, *(value for at, value in points if at <= part)], default=math.inf))
    return found


def _is_product(size: int, lengths: Sequence[int], some: Sequence[int]) -> bool:
    """Return whether a domain can have as many in each of its lines along an axis.

    Where the logarithms add up to all that they may, it has.

    Args:
        size: its devices.
        lengths: what fills a line of each axis.
        some: how many lines may not be filled.
    """

    def left(axis: int, rest: int) -> bool:
        if axis == len(lengths):
            return rest == 1
        return any(
            rest % count == 0
            and (count == lengths[axis] or size // count <= some[axis])
            and left(axis + 1, rest // count)
            for count in range(1, lengths[axis] + 1)
        )

    return left(0, size)


class _Tables:
    """What a device's neighbours along an axis take at least.

    Args:
        loads: what each two devices load.
        device: its rank.
    """

    def __init__(self, loads: Loads, device: int) -> None:
        rows = loads.links[device]
        rows = rows[:, rows.any(0)]
        self._one = np.maximum(rows.max(1), loads.alone[device])
        self._one_way = loads.alone[device], rows.max(1), loads.latency[device]
        self._two = np.array([(rows + row).max(1) for row in rows])
        np.maximum(self._two, self._one[:, None], out=self._two)
        np.maximum(self._two, self._one[None, :], out=self._two)
        self._farther = np.maximum.outer(loads.latency[device], loads.latency[device])
        self._device = device

    def least(self, axis: Axis, near: Mask, far: Mask) -> float:
        """Return the seconds of the axis, one neighbour being one of the first and one of the others.

        Args:
            axis: its rings.
            near: for each device whether it may be the first neighbour.
            far: whether it may be the second.
        """
        near, far = near.copy(), far.copy()
        near[self._device] = far[self._device] = False
        if axis.length == 2:
            alone, busiest, latency = self._one_way
            costs = np.maximum(alone, busiest) * 2 * axis.share + axis.steps * latency
            return float(costs[near & far].min(initial=math.inf))
        found = self._two * axis.share + axis.steps * self._farther
        np.fill_diagonal(found, math.inf)
        return float(found[np.ix_(near, far)].min(initial=math.inf))


def _coarse(cost: Cost, axis: Axis) -> float:
    """Return what an axis takes at least: all that a device says leaves it, to each neighbour by one link."""
    if not axis.pairs:
        return 0.0
    paths = cost.paths
    busiest = max(2 / paths.least_leaving, axis.flows / paths.least_port)
    return busiest * axis.share + axis.steps * paths.least_latency


def _levels(capacities: Capacities, far: Floats) -> Iterator[list[Domain]]:
    """Yield the ways in which devices fall into domains, as neighbours may be farther and farther."""
    ends = capacities.endpoints
    before = len(far)
    levels = 0
    reached = -1.0
    for limit in np.unique(far[~np.eye(len(far), dtype=bool)]).tolist():
        if limit <= reached:
            continue
        reached = limit * (1 + 1e-9)
        parts = _joined(far <= reached)
        if len(parts) == 1 or levels == LEVELS:
            return
        if len(parts) < before:
            before = len(parts)
            levels += 1
            yield [
                Domain(part, float(capacities.unit * into_part(capacities, [ends[rank] for rank in part])[0]))
                for part in parts
            ]


def _joined(near: Mask) -> list[tuple[int, ...]]:
    found, seen = [], set()
    for start in range(len(near)):
        if start in seen:
            continue
        part, edge = {start}, [start]
        while edge:
            others = set(np.flatnonzero(near[edge].any(0)).tolist()) - part
            part |= others
            edge = sorted(others)
        seen |= part
        found.append(tuple(sorted(part)))
    return found
