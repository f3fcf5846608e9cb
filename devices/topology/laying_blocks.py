"""Seconds that no order goes below, where the rings of an axis can be on few sets of devices.

Where they are to take little, there are not many sets of devices that one of them can be on, and few ways to cut all
devices up into such sets. Each way leaves a smaller mesh to be laid on the sets. Which of their devices are neighbours
is not looked at: what two sets say to each other loads the links between them, and the cuts, at least so much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from devices.topology.graph import Topology
from devices.topology.laying_dense import members
from devices.topology.laying_levels import Levels
from devices.topology.rings import Axis, Cost, Floats, Loads
from devices.topology.shapes import torus_shape

RINGS = 20_000
"""So many devices are looked at to say which sets the rings of an axis can be on."""

SETS = 400
"""So many such sets are kept."""

WAYS = 64
"""So many ways to cut all devices up into such sets are looked at."""

STEPS = 400
"""So many steps are taken for the orders of the sets of one way."""


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


def blocked(cost: Cost, floors: Sequence[float], limit: float) -> float:
    """Return seconds that no order goes below, no more than a limit.

    Args:
        cost: what an order takes at least; it has a table of loads.
        floors: what each axis takes at least.
        limit: more is not looked for.
    """
    least = math.fsum(floors)
    axes = [place for place, axis in enumerate(cost.axes) if axis.pairs and axis.length < cost.count]
    if not axes or least >= limit:
        return min(least, limit)
    place = max(axes, key=lambda each: cost.axes[each].share)
    assert cost.loads is not None
    try:
        rings = _rings(cost.loads, cost.axes[place], floors[place], limit - (least - floors[place]))
        ways = list(_ways(cost.count, rings))
    except _TooManyError:
        return least
    seen: set[tuple[float, bytes, bytes]] = set()
    found = limit
    for way in ways:
        own = max(rings[each] for each in way)
        loads = _between(cost.loads, way)
        key = own, np.round(loads.alone, 9).tobytes(), _in_order(loads.links).tobytes()
        if key in seen:
            continue
        seen.add(key)
        found = min(found, own + _left(cost, place, loads, floors, found - own))
        if found <= least:
            return least
    return found


def _left(cost: Cost, place: int, loads: Loads, floors: Sequence[float], limit: float) -> float:
    """Return what the other axes take at least on sets that the rings of one axis are on."""
    axes = [axis for at, axis in enumerate(cost.axes) if at != place]
    rest = [floor for at, floor in enumerate(floors) if at != place]
    sizes = [axis.length for axis in axes]
    left = Cost(cost.paths, loads.count, [axis.on(sizes, at) for at, axis in enumerate(axes)])
    left.loads = loads
    if not any(axis.pairs for axis in left.axes):
        return 0.0
    search = Levels(left, rest, np.empty((0, loads.count), dtype=np.int64))
    found = search.improve(range(loads.count), STEPS, limit)[1]
    return found if found >= limit else max(found, blocked(left, rest, limit))


def _rings(loads: Loads, axis: Axis, floor: float, limit: float) -> dict[int, float]:
    """Return the sets of devices that a ring can be on so that it takes less than a limit, and what it takes at least.

    Args:
        loads: what each two devices load.
        axis: its rings.
        floor: what the axis takes at least.
        limit: what it takes less than.
    """
    pairs = np.maximum(loads.links.max(2), loads.alone) * (axis.flows * axis.share) + axis.steps * loads.latency
    np.fill_diagonal(pairs, math.inf)
    near = [sum(1 << at for at in np.flatnonzero(row).tolist()) for row in pairs < limit * (1 - 1e-9)]
    # From each device, those that are so many steps away at the most.
    within = [[1 << at for at in range(loads.count)], near]
    while len(within) < axis.length:
        within.append([_union(near, before) | before for before in within[-1]])
    found: dict[int, float] = {}
    looked = 0

    def add(ring: list[int]) -> None:
        following = [*ring[1:], ring[0]]
        busiest = float(loads.links[ring, following].sum(0).max())
        alone = float(loads.alone[ring, following].max()) * axis.flows
        seconds = max(busiest, alone) * axis.share + axis.steps * float(loads.latency[ring, following].max())
        if seconds < limit * (1 - 1e-9):
            inside = sum(1 << device for device in ring)
            found[inside] = min(found.get(inside, math.inf), max(floor, seconds))
            if len(found) > SETS:
                raise _TooManyError

    def walk(ring: list[int], free: int) -> None:
        nonlocal looked
        for device in members(near[ring[-1]] & free & within[axis.length - len(ring)][ring[0]]):
            looked += 1
            if looked > RINGS:
                raise _TooManyError
            ring.append(device)
            if len(ring) < axis.length:
                walk(ring, free & ~(1 << device))
            # Of the two ways round one is enough.
            elif near[device] >> ring[0] & 1 and device >= ring[1]:
                add(ring)
            ring.pop()

    for first in range(loads.count):
        walk([first], -2 << first)
    return found


def _union(near: Sequence[int], chosen: int) -> int:
    found = 0
    for device in members(chosen):
        found |= near[device]
    return found


def _ways(count: int, sets: Sequence[int] | dict[int, float]) -> Iterator[list[int]]:
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


def _in_order(links: Floats) -> Floats:
    """Return a table of loads with its links in an order that does not hang on their numbers."""
    flat = np.round(links.reshape(-1, links.shape[2]) / max(float(links.max()), 1e-300), 9)
    flat = flat[:, flat.any(0)]
    return np.asarray(flat[:, np.lexsort(flat)])
