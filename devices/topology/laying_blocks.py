"""What axes take at least in faster orders, where the rings of one of them can be on few sets of devices.

Where they are to take little, there are not many sets of devices that one of them can be on, and few ways to cut all
devices up into such sets. Each way leaves a smaller mesh to be laid on the sets. Which of their devices are neighbours
is not looked at: what two sets say to each other loads the links between them, and the cuts, at least so much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from devices.topology.graph import Topology
from devices.topology.laying_dense import members
from devices.topology.laying_levels import Levels
from devices.topology.rings import Cost, Floats, Loads, Mask
from devices.topology.shapes import torus_shape

RINGS = 20_000
"""So many parts of rings are looked at to say which sets of devices those of an axis can be on."""

SETS = 400
"""So many such sets are kept."""

WAYS = 64
"""So many ways to cut all devices up into such sets are looked at."""

STEPS = 400
"""So many steps are taken for the orders of the sets of one way."""

_EQUAL = 1 + 1e-9


class _TooManyError(Exception):
    """There are more sets, or more ways to choose them, than are looked at."""


def with_cuts(topology: Topology, cost: Cost) -> Cost:
    """Return a cost of which the loads tell, besides those of links, those of all links between two slabs of a torus.

    A slab is all devices that have one place along an axis. All links from one to the next are together no busier than
    the busiest of them, so that what an order takes stays the same.
    """
    loads = cost.loads
    assert loads is not None
    shape = torus_shape(topology) or ()
    rates = 1 / np.array(cost.paths.seconds_per_byte)
    tables = [loads.links]
    for axis, length in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        between: dict[tuple[int, int], list[int]] = {}
        for link, (one, other) in enumerate(cost.paths.ends):
            between.setdefault((one // stride % length, other // stride % length), []).append(link)
        for (one, other), links in between.items():
            if one != other:
                tables.append((loads.links[:, :, links] @ rates[links] / rates[links].sum())[:, :, None])
    found = Cost(cost.paths, cost.count, cost.axes)
    found.loads = replace(loads, links=np.concatenate(tables, 2))
    return found


def blocked(cost: Cost, floors: Sequence[float], limit: float) -> list[float]:
    """Return what each axis takes at least in orders that take less than a limit; there are none if it adds up to that.

    Args:
        cost: what an order takes at least; it has a table of loads.
        floors: what is known of that.
        limit: more is not looked for.
    """
    found = list(floors)
    axes = [place for place, axis in enumerate(cost.axes) if axis.pairs and axis.length < cost.count]
    rest = limit - math.fsum(floors)
    if not axes or rest <= 0:
        return found
    place = max(axes, key=lambda each: cost.axes[each].share)
    assert cost.loads is not None
    axis, floor = cost.axes[place], floors[place]
    pairs = np.maximum(cost.loads.links.max(2), cost.loads.alone) * (axis.flows * axis.share)
    pairs = np.maximum(pairs + axis.steps * cost.loads.latency, floor)
    np.fill_diagonal(pairs, math.inf)
    rings: dict[int, float] = {}
    seen: set[tuple[float, bytes]] = set()
    # All rings take less than the second level, or than the third, and so on, or than the limit.
    for below in _levels(pairs, floor + rest):
        try:
            for each in _rings(pairs < below / _EQUAL, axis.length):
                rings.setdefault(each, found[place])
            for way in list(_ways(cost.count, rings)):
                own = max(rings[each] for each in way)
                loads = _between(cost.loads, way)
                key = own, _said(loads)
                if key in seen:
                    continue
                if own + _left(cost, place, loads, floors, limit - own) < limit / _EQUAL:
                    return found
                seen.add(key)
        except _TooManyError:
            return found
        found[place] = below
    return found


def _left(cost: Cost, place: int, loads: Loads, floors: Sequence[float], limit: float) -> float:
    """Return what the other axes take at least on sets that the rings of one axis are on, no more than a limit."""
    axes = [axis for at, axis in enumerate(cost.axes) if at != place]
    rest = [floor for at, floor in enumerate(floors) if at != place]
    sizes = [axis.length for axis in axes]
    left = Cost(cost.paths, loads.count, [axis.on(sizes, at) for at, axis in enumerate(axes)])
    left.loads = loads
    if not any(axis.pairs for axis in left.axes):
        return 0.0
    raised = blocked(left, rest, limit)
    if math.fsum(raised) >= limit / _EQUAL:
        return limit
    search = Levels(left, raised, np.empty((0, loads.count), dtype=np.int64))
    return search.improve(range(loads.count), STEPS, seconds=limit)[1]


def _levels(pairs: Floats, limit: float) -> list[float]:
    """Return what two neighbours can take below a limit, but for the least, and the limit."""
    found: list[float] = []
    for seconds in np.unique(pairs[pairs < limit / _EQUAL]).tolist():
        if not found or seconds > found[-1] * _EQUAL:
            found.append(seconds)
    return [*found[1:], limit]


def _rings(near: Mask, length: int) -> set[int]:
    """Return the sets of devices that a ring can be on.

    Args:
        near: which devices may be neighbours.
        length: how many are in a ring.
    """
    count = len(near)
    beside = [sum(1 << at for at in np.flatnonzero(row).tolist()) for row in near]
    # From each device, those that are so many steps away at the most.
    within = [[1 << at for at in range(count)], beside]
    while len(within) < length:
        within.append([_union(beside, before) | before for before in within[-1]])
    found: set[int] = set()
    looked = 0
    for first in range(count):
        # The sets of devices of a part of a ring that begins at its first, each with the last of them.
        parts = {(1 << first, first)}
        for many in range(1, length):
            longer = set()
            for inside, last in parts:
                for device in members(beside[last] & ~inside & within[length - many][first] & -2 << first):
                    longer.add((inside | 1 << device, device))
            parts = longer
            looked += len(parts)
            if looked > RINGS:
                raise _TooManyError
        found.update(inside for inside, last in parts if beside[last] >> first & 1)
        if len(found) > SETS:
            raise _TooManyError
    return found


def _union(near: Sequence[int], chosen: int) -> int:
    found = 0
    for device in members(chosen):
        found |= near[device]
    return found


def _ways(count: int, sets: Iterable[int]) -> Iterator[list[int]]:
    """Yield the ways to cut all devices up into some of the sets."""
    by_first: list[list[int]] = [[] for _ in range(count)]
    for each in sets:
        by_first[members(each & -each)[0]].append(each)
    looked = 0

    def cut(chosen: list[int], free: int) -> Iterator[list[int]]:
        nonlocal looked
        if not free:
            yield chosen
            return
        for each in by_first[members(free & -free)[0]]:
            if each & ~free:
                continue
            looked += 1
            if looked > WAYS * count:
                raise _TooManyError
            yield from cut([*chosen, each], free & ~each)

    for number, way in enumerate(cut([], (1 << count) - 1)):
        if number == WAYS:
            raise _TooManyError
        yield way


def _between(loads: Loads, sets: Sequence[int]) -> Loads:
    """Return what two sets load at least when each device of one says a byte to one of the other, and it to that."""
    devices = np.array([members(each) for each in sets])
    order = devices.reshape(-1)
    shape = (*devices.shape, *devices.shape)

    def farthest(table: Floats) -> Floats:
        between = table[np.ix_(order, order)].reshape(shape)
        one, other = between.min(3).max(1), between.min(1).max(2)
        return np.asarray(np.maximum(one, other))

    between = loads.links[np.ix_(order, order)].reshape(*shape, -1)
    links = np.maximum(between.min(3).sum(1), between.min(1).sum(2))
    return Loads(len(sets), links, farthest(loads.alone), farthest(loads.latency), farthest(loads.hops))


def _said(loads: Loads) -> bytes:
    """Return what tells loads from others, whatever the numbers of their links; the last digits do not count."""
    links = loads.links.reshape(-1, loads.links.shape[2])
    table = np.concatenate([loads.alone.reshape(-1, 1), loads.latency.reshape(-1, 1), links[:, links.any(0)]], 1)
    parts, powers = np.frexp(table)
    # A part of a power of 2 may be rounded to all of it.
    parts, more = np.frexp(np.round(parts * 2.0**40))
    table = np.ldexp(parts, powers + more)
    return bytes(table[:, :2].tobytes() + table[:, 2:][:, np.lexsort(table[:, 2:])].tobytes())
