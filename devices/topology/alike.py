"""Trees for graphs that look the same from every device: a few for the first, moved to all others.

What matters of a tree is then how often it uses links of each class, the links that moves take to each other. Each
class has a quota. A tree grows by one link at a time, of the class that is furthest below its quota, and carries as
much as keeps the rest possible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.forest import Forest, Path
from devices.topology.symmetry import Numbers
from devices.topology.translations import Translations

ROUTES = 16
"""So many ways from one device to another, all through switches, are looked at."""

TRIES = 6
"""So often is a forest grown anew, in twice as many parts, if it is not the best that can be."""


@final
@dataclass(frozen=True)
class Way:
    """How the first device reaches another without passing a device.

    Args:
        target: its rank.
        path: the nodes on the way.
        uses: how often each class of links is on it, seen from one link of the class.
    """

    target: int
    path: Path
    uses: tuple[tuple[int, Fraction], ...]


def alike_forest(capacities: Capacities, moved: Translations, time: Fraction) -> Forest:
    """Return a forest of a graph that looks the same from every device; each root has the same number of units.

    Args:
        capacities: the graph.
        moved: its translations.
        time: the least that could be, for each unit of capacity and all data being 1.
    """
    alike, sizes, rates = classes(capacities, moved)
    ways = _ways(capacities, alike, sizes, len(moved.moves))
    count = len(moved.moves)
    # What a link of each class may carry for each unit of one root.
    quotas = [rate * time * count for rate in rates]
    least = math.lcm(*(quota.denominator for quota in quotas))
    best: Forest | None = None
    for attempt in range(TRIES):
        units = min(least, 1 << 12) << attempt
        trees = _Growth(count, _sums(capacities, moved), ways, quotas).grow(units)
        found = _moved(capacities, moved, ways, trees)
        if best is None or found.time(capacities.arcs) < best.time(capacities.arcs):
            best = found
        if best.time(capacities.arcs) <= time:
            break
    assert best is not None
    return best


@dataclass(frozen=True)
class _Tree:
    """A tree from rank 0: for each rank its parent, its depth and the number of the way that leads to it."""

    units: int
    parents: list[int]
    depths: list[int]
    ways: list[int]


def classes(capacities: Capacities, moved: Translations) -> tuple[dict[tuple[int, int], int], list[int], list[int]]:
    """Return the class of each arc, and for each class how many arcs it has and the capacity of one."""
    ends = list(capacities.arcs)
    keys = np.array([source * capacities.size + target for source, target in ends], dtype=np.int64)
    order = np.argsort(keys)
    numbers = np.arange(len(ends))
    sources, targets = np.array(ends, dtype=np.int64).T
    # The least number among all images of an arc names its class.
    for move in moved.moves:
        images = order[np.searchsorted(keys[order], move[sources] * capacities.size + move[targets])]
        numbers = np.minimum(numbers, numbers[images])
    names, places, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    rates = [capacities.arcs[ends[name]] for name in names.tolist()]
    return dict(zip(ends, places.tolist(), strict=True)), sizes.tolist(), rates


def _ways(
    capacities: Capacities, classes: Mapping[tuple[int, int], int], sizes: Sequence[int], count: int
) -> list[Way]:
    """Return the ways from the first device, for each target and each first link the shortest ones."""
    ranks = {node: rank for rank, node in enumerate(capacities.endpoints)}
    after: dict[int, list[int]] = {}
    for source, target in capacities.arcs:
        after.setdefault(source, []).append(target)
    start = capacities.endpoints[0]
    found: list[Way] = []
    for first in after[start]:
        paths: dict[int, list[Path]] = {first: [(start, first)]}
        frontier = [first]
        seen = {start, first}
        while frontier:
            reached: dict[int, list[Path]] = {}
            for node in frontier:
                if node in ranks:
                    continue
                for other in after[node]:
                    if other not in seen:
                        known = reached.setdefault(other, [])
                        known += [(*path, other) for path in paths[node]][: ROUTES - len(known)]
            paths.update(reached)
            seen.update(reached)
            frontier = list(reached)
        for node, some in paths.items():
            if node in ranks:
                for path in some:
                    uses: dict[int, int] = {}
                    for arc in itertools.pairwise(path):
                        uses[classes[arc]] = uses.get(classes[arc], 0) + 1
                    each = tuple((number, Fraction(times * count, sizes[number])) for number, times in uses.items())
                    found.append(Way(ranks[node], path, each))
    return found


def _sums(capacities: Capacities, moved: Translations) -> Numbers:
    """Return for two ranks the one that the move of the first takes the second to."""
    places = np.zeros(capacities.size, dtype=np.int64)
    places[list(capacities.endpoints)] = np.arange(len(capacities.endpoints))
    found: Numbers = places[moved.moves[:, list(capacities.endpoints)]]
    return found


class _Growth:
    def __init__(self, count: int, sums: Numbers, ways: Sequence[Way], quotas: Sequence[Fraction]) -> None:
        self.count = count
        self.sums: list[list[int]] = sums.tolist()
        self.ways = ways
        self.quotas = quotas
        kinds: dict[tuple[tuple[int, Fraction], ...], list[int]] = {}
        for number, way in enumerate(ways):
            kinds.setdefault(tuple(sorted(way.uses)), []).append(number)
        self.kinds = list(kinds.items())

    def grow(self, units: int) -> list[_Tree]:
        """Return trees that carry so many units together."""
        left = [quota * units for quota in self.quotas]
        trees = []
        while units:
            aims = [rest / units for rest in left]
            tree, used = self._tree(aims)
            carried = self._how_many(units, aims, used)
            trees.append(_Tree(carried, *tree))
            left = [rest - use * carried for rest, use in zip(left, used, strict=True)]
            units -= carried
        return trees

    def _how_many(self, units: int, aims: Sequence[Fraction], used: Sequence[Fraction]) -> int:
        """Return how many units a tree may carry so that the others need not go below its uses by more than one."""
        most = Fraction(units)
        for aim, use in zip(aims, used, strict=True):
            if use > aim:
                most = min(most, units * (1 - (use - aim)))
        return max(1, math.floor(most))

    def _tree(self, aims: Sequence[Fraction]) -> tuple[tuple[list[int], list[int], list[int]], list[Fraction]]:
        used = [Fraction(0)] * len(aims)
        parents, depths, ways = [-1] * self.count, [0] * self.count, [-1] * self.count
        parents[0] = 0
        reached = [0]
        # For each kind of ways, the next rank and the next way from it that may lead on.
        pointers = [[0, 0] for _ in self.kinds]
        alive = set(range(len(self.kinds)))
        # What is left of each kind's quota, of the class that has least; sorting by it is done when it changes.
        while len(reached) < self.count:
            ranked = sorted(
                alive,
                key=lambda kind: -min((aims[number] - used[number]) / uses for number, uses in self.kinds[kind][0]),
            )
            for kind in ranked:
                uses, numbers = self.kinds[kind]
                if step := self._next(pointers[kind], numbers, reached, parents):
                    source, target, way = step
                    parents[target], depths[target], ways[target] = source, depths[source] + 1, way
                    reached.append(target)
                    for number, times in uses:
                        used[number] += times
                    break
            else:
                raise AssertionError("the ways do not reach every device")
        return (parents, depths, ways), used

    def _next(
        self, pointer: list[int], numbers: Sequence[int], reached: Sequence[int], parents: Sequence[int]
    ) -> tuple[int, int, int] | None:
        """Return the next step of a kind, from the rank that was reached first."""
        place, turn = pointer
        while place < len(reached):
            source = reached[place]
            row = self.sums[source]
            while turn < len(numbers):
                way = numbers[turn]
                target = row[self.ways[way].target]
                if parents[target] < 0:
                    pointer[:] = place, turn
                    return source, target, way
                turn += 1
            place, turn = place + 1, 0
        pointer[:] = place, 0
        return None


def _moved(capacities: Capacities, moved: Translations, ways: Sequence[Way], trees: Sequence[_Tree]) -> Forest:
    """Return the trees of all ranks."""
    sums = _sums(capacities, moved)
    count = len(sums)
    shape = count, len(trees), count
    parents, depths, hops = (np.empty(shape, dtype=np.int64) for _ in range(3))
    for number, tree in enumerate(trees):
        # Where a move takes a rank, it takes the rank's parent along.
        np.put_along_axis(parents[:, number], sums, sums[:, tree.parents], axis=1)
        np.put_along_axis(depths[:, number], sums, np.broadcast_to(np.array(tree.depths), sums.shape), axis=1)
        np.put_along_axis(hops[:, number], sums, np.broadcast_to(np.array(tree.ways), sums.shape), axis=1)
    crossing = [0] * len(ways)
    for tree in trees:
        for number in tree.ways:
            if number >= 0:
                crossing[number] += tree.units
    totals: dict[tuple[int, int], int] = {}
    keys = np.zeros(0, dtype=np.int64)
    loads = np.zeros(capacities.size * capacities.size, dtype=np.int64)
    for way, units in zip(ways, crossing, strict=True):
        if units:
            for source, target in itertools.pairwise(way.path):
                keys = moved.moves[:, source] * capacities.size + moved.moves[:, target]
                np.add.at(loads, keys, units)
    for key in np.flatnonzero(loads).tolist():
        totals[divmod(key, capacities.size)] = int(loads[key])

    def path(source: int, target: int, hop: int) -> Path:
        del target
        return tuple(moved.moves[source, list(ways[hop].path)].tolist())

    return Forest(
        count,
        np.repeat(np.arange(count), len(trees)),
        tuple(tree.units for tree in trees) * count,
        parents.reshape(-1, count),
        depths.reshape(-1, count),
        hops.reshape(-1, count),
        path,
        totals,
    )
