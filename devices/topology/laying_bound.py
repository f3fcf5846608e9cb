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
        self._loads = loads = cost.loads
        if loads is None:
            self.by_axis = [_coarse(cost, axis) for axis in cost.axes]
            self.seconds = sum(self.by_axis)
            return
        self._tables = [_Tables(loads, device) for device in range(loads.count)] if loads.count > 1 else []
        capacities = Capacities.of(topology)
        busy, late, far = (
            list(_levels(capacities, each))
            for each in (np.maximum(loads.links.max(2), loads.alone), loads.latency, loads.hops)
        )
        self.by_axis = [self._alone(axis) for axis in cost.axes]
        """What each axis takes at least."""
        # The neighbours that are busiest need not be those that are farthest.
        without = [replace(axis, steps=0) for axis in cost.axes], [replace(axis, share=0.0) for axis in cost.axes]
        self.seconds = max(
            self._all(cost.axes, busy + late + far),
            self._all(without[0], busy + far) + self._all(without[1], late),
        )
        """What all axes together take at least."""

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
        loads = self._loads
        assert loads is not None
        axes = [number for number, axis in enumerate(every) if axis.length > 1]
        masks = np.zeros((loads.count, loads.count), dtype=bool)
        for domain in domains:
            masks[np.ix_(domain.members, domain.members)] = True
        kinds: list[list[float]] = []
        for number in axes:
            axis = every[number]
            if not axis.pairs:
                kinds.append([0.0, 0.0, 0.0])
                continue
            costs = [
                [table.least(axis, near, far) for near, far in ((mask, mask), (mask, ~mask), (~mask, ~mask))]
                for table, mask in zip(self._tables, masks, strict=True)
            ]
            # All devices stay within, but one alone may be the one that does not.
            inside = max(cost[0] for cost in costs)
            half = math.inf if axis.length == 2 else max(floors[number], min(cost[1] for cost in costs))
            kinds.append([inside, half, max(floors[number], min(cost[2] for cost in costs))])
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
            inner = sum(value for value, chosen in zip(floor, choice, strict=True) if chosen == 0)
            outer = [
                (length, value, 2 * whole * every[number].share)
                for number, length, value, chosen in zip(axes, lengths, floor, choice, strict=True)
                if chosen
            ]
            found = max(_crossing(size // whole, outer, capacity, least - inner) for size, capacity in different)
            least = min(least, inner + found)
        return least


def _crossing(size: int, axes: Sequence[tuple[int, float, float]], capacity: float, limit: float) -> float:
    """Return what axes take at least to get out of a domain.

    A domain that meets some lines of each axis has no more devices than the product of those numbers, the number of
    axes less one being taken as the root (Loomis and Whitney). Each line that it meets without filling it leaves it
    at two ends.

    Args:
        size: the devices of the domain, those that axes within it join counted as one.
        axes: of each its length, what it takes at least, and the bytes that leave for each line.
        capacity: bytes per second that can leave.
        limit: more is not looked for.
    """
    needed = size ** (len(axes) - 1)
    # The lines that are met, for each number of those that are not filled.
    met = [[some + (size - some) // length for some in range(size + 1)] for length, _, _ in axes]
    most = [max(each) for each in met]
    least = limit

    def choose(axis: int, lines: int, taken: float) -> None:
        nonlocal least
        if axis == len(axes):
            if lines >= needed:
                least = min(least, taken)
            return
        _, floor, share = axes[axis]
        after = math.prod(most[axis + 1 :])
        rest = sum(floor for _, floor, _ in axes[axis + 1 :])
        for some, count in enumerate(met[axis]):
            found = taken + max(floor, some * share / capacity)
            if found + rest >= least:
                return
            if lines * count * after >= needed:
                choose(axis + 1, lines * count, found)

    choose(0, 1, 0.0)
    return least


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
