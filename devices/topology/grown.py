"""Trees for graphs too large for exact ones: each grows where links are emptiest, and again when all others are there.

How far they are from the best that could be is counted afterwards, not promised.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from devices.errors import TopologyError
from devices.topology.capacity import Capacities
from devices.topology.forest import Forest, Path

ROUNDS = 2
"""So often is every tree grown."""

TREES = 64
"""At least so many trees there are."""

NEAR = 8
"""From each device, on each first link, so many targets before it in rank and so many behind it are looked at."""

Way = tuple[int, tuple[int, ...], int]
"""The rank that it leads to, the numbers of the arcs on it, and its own number."""


def grown_forest(capacities: Capacities, shares: Mapping[int, Fraction]) -> Forest:
    """Return a forest with a tree for each endpoint that has a share, or several if that is large."""
    ranks = {node: rank for rank, node in enumerate(capacities.endpoints)}
    count = len(ranks)
    ends = list(capacities.arcs)
    numbers = {arc: number for number, arc in enumerate(ends)}
    rates = [float(capacities.arcs[arc]) for arc in ends]
    paths: list[Path] = []
    ways: list[list[Way]] = []
    after: dict[int, list[int]] = {}
    for source, target in ends:
        after.setdefault(source, []).append(target)
    for node in capacities.endpoints:
        ways.append([])
        for path in _near(_paths(after, ranks, node), ranks):
            arcs = tuple(numbers[arc] for arc in itertools.pairwise(path))
            ways[-1].append((ranks[path[-1]], arcs, len(paths)))
            paths.append(path)
    # Roots that have much need several trees each to fill all links.
    parts = {node: math.ceil(shares[node] * TREES) for node in capacities.endpoints if shares[node]}
    below = math.lcm(*((shares[node] / times).denominator for node, times in parts.items()))
    roots = [ranks[node] for node, times in parts.items() for _ in range(times)]
    units = [int(shares[node] / times * below) for node, times in parts.items() for _ in range(times)]
    loads = [0.0] * len(ends)
    trees: list[tuple[list[int], list[int], list[int]]] = [([], [], [])] * len(roots)
    for _ in range(ROUNDS):
        for place, root in enumerate(roots):
            for hop in trees[place][2]:
                if hop >= 0:
                    for arc in itertools.pairwise(paths[hop]):
                        loads[numbers[arc]] -= units[place]
            trees[place] = grown_tree(root, float(units[place]), count, ways, rates, loads)
    totals: dict[tuple[int, int], int] = {}
    for (_, _, hops), some in zip(trees, units, strict=True):
        for hop in hops:
            if hop >= 0:
                for arc in itertools.pairwise(paths[hop]):
                    totals[arc] = totals.get(arc, 0) + some
    table = np.array(trees, dtype=np.int64).reshape(len(trees), 3, count)

    def path_of(source: int, target: int, hop: int) -> Path:
        assert (ranks[paths[hop][0]], ranks[paths[hop][-1]]) == (source, target)
        return paths[hop]

    return Forest(
        count, np.array(roots, dtype=np.int64), tuple(units), table[:, 0], table[:, 1], table[:, 2], path_of, totals
    )


def _paths(after: Mapping[int, list[int]], ranks: Mapping[int, int], start: int) -> list[Path]:
    """Return for each endpoint that no other is on the way to, and each first link, a shortest path."""
    found: list[Path] = []
    # Of a device that only takes, nothing goes anywhere.
    for first in after.get(start, ()):
        seen = {start, first}
        frontier: list[Path] = [(start, first)]
        while frontier:
            reached: list[Path] = []
            for path in frontier:
                if path[-1] in ranks:
                    found.append(path)
                    continue
                for other in after.get(path[-1], ()):
                    if other not in seen:
                        seen.add(other)
                        reached.append((*path, other))
            frontier = reached
    return found


def _near(paths: list[Path], ranks: Mapping[int, int]) -> list[Path]:
    """Return those of the paths of a device that lead to the nearest ranks, for each first link."""
    first: dict[int, list[Path]] = {}
    for path in paths:
        first.setdefault(path[1], []).append(path)
    found: list[Path] = []
    for some in first.values():
        rank = ranks[some[0][0]]
        some.sort(key=lambda path: (ranks[path[-1]] - rank) % len(ranks))
        found += some if len(some) <= 2 * NEAR else some[:NEAR] + some[-NEAR:]
    return found


def grown_tree(
    root: int, units: float, count: int, ways: list[list[Way]], rates: list[float], loads: list[float]
) -> tuple[list[int], list[int], list[int]]:
    """Grow a tree, and add what it carries to the loads."""
    parents, depths, hops = [-1] * count, [0] * count, [-1] * count
    parents[root] = root
    queue: list[tuple[float, int, int, Way]] = []

    def offer(rank: int) -> None:
        for way in ways[rank]:
            if parents[way[0]] < 0:
                heapq.heappush(queue, (_fullness(way[1], units, rates, loads), depths[rank], rank, way))

    offer(root)
    left = count - 1
    while left:
        if not queue:
            raise TopologyError(
                f"links are lacking: from device {root} they lead to {count - left - 1} of {count - 1} others"
            )
        fullness, depth, source, way = heapq.heappop(queue)
        target, arcs, number = way
        if parents[target] >= 0:
            continue
        now = _fullness(arcs, units, rates, loads)
        if now > fullness:
            heapq.heappush(queue, (now, depth, source, way))
            continue
        for arc in arcs:
            loads[arc] += units
        parents[target], depths[target], hops[target] = source, depth + 1, number
        left -= 1
        offer(target)
    return parents, depths, hops


def _fullness(arcs: tuple[int, ...], units: float, rates: list[float], loads: list[float]) -> float:
    return max([(loads[arc] + units) / rates[arc] for arc in arcs])
