"""Trees for graphs that look the same from many devices: a few for the first of each block, moved to all others.

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
from typing import Any, final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.forest import Forest, Path
from devices.topology.symmetry import Numbers
from devices.topology.translations import Translations

ROUTES = 16
"""So many ways from one device to another, all through switches, are looked at."""

TRIES = 6
"""So often is a forest grown anew, in twice as many parts, if it is not the best that can be."""

MANY = 256
"""For more devices than that, it is grown once."""


PARTS = 32
"""At most about so many trees share what a root sends."""


@final
@dataclass(frozen=True)
class Way:
    """How the first device of a block reaches another without passing a device.

    Args:
        target: its rank.
        path: the nodes on the way.
        uses: how often each class of links is on it, seen from one link of the class.
    """

    target: int
    path: Path
    uses: tuple[tuple[int, Fraction], ...]


def alike_forest(capacities: Capacities, moved: Translations, shares: Mapping[int, Fraction], time: Fraction) -> Forest:
    """Return a forest of a graph that looks the same from many devices.

    Args:
        capacities: the graph.
        moved: its translations.
        shares: how much of the data each endpoint has, in each block all the same.
        time: the least that could be, for each unit of capacity and all data being 1.
    """
    alike, sizes, rates = classes(capacities, moved)
    ways = [_ways(capacities, alike, sizes, moved, block) for block in range(moved.blocks)]
    # What a link of each class may carry.
    quotas = [rate * time for rate in rates]
    each = [shares[capacities.endpoints[block * moved.count]] for block in range(moved.blocks)]
    whole = math.lcm(*(value.denominator for value in (*each, *quotas)))
    best: Forest | None = None
    for attempt in range(TRIES):
        scale = whole << attempt
        growth = _Growth(_sums(capacities, moved), moved.count, ways, [quota * scale for quota in quotas])
        trees = growth.grow([int(share * scale) for share in each])
        found = _moved(capacities, moved, growth.ways, trees)
        if best is None or found.time(capacities.arcs) < best.time(capacities.arcs):
            best = found
        if best.time(capacities.arcs) <= time or len(capacities.endpoints) > MANY:
            break
    assert best is not None
    return best


@dataclass(frozen=True)
class _Tree:
    """A tree from the first rank of a block: for each rank its parent, its depth and the number of the way to it."""

    block: int
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
    capacities: Capacities,
    classes: Mapping[tuple[int, int], int],
    sizes: Sequence[int],
    moved: Translations,
    block: int,
) -> list[Way]:
    """Return the ways from the first device of a block, for each target and each first link the shortest ones."""
    ranks = {node: rank for rank, node in enumerate(capacities.endpoints)}
    after: dict[int, list[int]] = {}
    for source, target in capacities.arcs:
        after.setdefault(source, []).append(target)
    start = capacities.endpoints[block * moved.count]
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
                    each = tuple(
                        (number, Fraction(times * moved.count, sizes[number])) for number, times in uses.items()
                    )
                    found.append(Way(ranks[node], path, each))
    return found


def _sums(capacities: Capacities, moved: Translations) -> Numbers:
    """Return for each move where it takes each rank."""
    places = np.zeros(capacities.size, dtype=np.int64)
    places[list(capacities.endpoints)] = np.arange(len(capacities.endpoints))
    found: Numbers = places[moved.moves[:, list(capacities.endpoints)]]
    return found


class _Growth:
    def __init__(self, sums: Numbers, count: int, ways: Sequence[Sequence[Way]], left: Sequence[Fraction]) -> None:
        self.size = sums.shape[1]
        self.count = count
        self.sums: list[list[int]] = sums.tolist()
        self.ways = [way for some in ways for way in some]
        self.left = list(left)
        kinds: dict[tuple[tuple[int, Fraction], ...], list[list[int]]] = {}
        number = 0
        for block, some in enumerate(ways):
            for way in some:
                kinds.setdefault(tuple(sorted(way.uses)), [[] for _ in ways])[block].append(number)
                number += 1
        self.kinds = list(kinds.items())

    def grow(self, wanted: Sequence[int]) -> list[_Tree]:
        """Return trees that carry so many units from the first rank of each block."""
        waiting = list(wanted)
        trees = []
        while units := sum(waiting):
            # The block of which most is left, of what it has.
            block = max(range(len(waiting)), key=lambda each: Fraction(waiting[each], max(1, wanted[each])))
            aims = [rest / units for rest in self.left]
            tree, used = self._tree(block, aims)
            carried = self._how_many(units, aims, used)
            carried = min(waiting[block], max(carried, -(-wanted[block] // PARTS)))
            trees.append(_Tree(block, carried, *tree))
            self.left = [rest - use * carried for rest, use in zip(self.left, used, strict=True)]
            waiting[block] -= carried
        return sorted(trees, key=lambda tree: tree.block)

    def _how_many(self, units: int, aims: Sequence[Fraction], used: Sequence[Fraction]) -> int:
        """Return how many units a tree may carry so that the others need not go below its uses by more than one."""
        most = Fraction(units)
        for aim, use in zip(aims, used, strict=True):
            if use > aim:
                most = min(most, units * (1 - (use - aim)))
        return max(1, math.floor(most))

    def _tree(
        self, block: int, aims: Sequence[Fraction]
    ) -> tuple[tuple[list[int], list[int], list[int]], list[Fraction]]:
        used = [Fraction(0)] * len(aims)
        root = block * self.count
        parents, depths, ways = [-1] * self.size, [0] * self.size, [-1] * self.size
        parents[root] = root
        reached = [root]
        # For each kind of ways, the next rank and the next way from it that may lead on.
        pointers = [[0, 0] for _ in self.kinds]
        alive = set(range(len(self.kinds)))
        while len(reached) < self.size:
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
        self, pointer: list[int], numbers: Sequence[Sequence[int]], reached: Sequence[int], parents: Sequence[int]
    ) -> tuple[int, int, int] | None:
        """Return the next step of a kind, from the rank that was reached first."""
        place, turn = pointer
        while place < len(reached):
            source = reached[place]
            block, move = divmod(source, self.count)
            row, some = self.sums[move], numbers[block]
            while turn < len(some):
                way = some[turn]
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
    count, size = sums.shape
    tables: list[list[Numbers]] = [[], [], []]
    roots, units = [], []
    for block in range(moved.blocks):
        own = [tree for tree in trees if tree.block == block]
        some = [np.empty((count, len(own), size), dtype=np.int64) for _ in tables]
        for number, tree in enumerate(own):
            # Where a move takes a rank, it takes the rank's parent along.
            np.put_along_axis(some[0][:, number], sums, sums[:, tree.parents], axis=1)
            np.put_along_axis(some[1][:, number], sums, np.broadcast_to(np.array(tree.depths), sums.shape), axis=1)
            np.put_along_axis(some[2][:, number], sums, np.broadcast_to(np.array(tree.ways), sums.shape), axis=1)
        for table, one in zip(tables, some, strict=True):
            table.append(one.reshape(-1, size))
        roots.append(np.repeat(np.arange(block * count, (block + 1) * count), len(own)))
        units += [tree.units for tree in own] * count
    crossing = [0] * len(ways)
    for tree in trees:
        for number in tree.ways:
            if number >= 0:
                crossing[number] += tree.units
    totals: dict[tuple[int, int], int] = {}
    # Bandwidths that are no round numbers make for many units.
    whole = np.int64 if sum(crossing) * count < 2**62 else object
    loads: Any = np.zeros(capacities.size * capacities.size, dtype=whole)
    for way, some_units in zip(ways, crossing, strict=True):
        if some_units:
            for source, target in itertools.pairwise(way.path):
                keys = moved.moves[:, source] * capacities.size + moved.moves[:, target]
                np.add.at(loads, keys, some_units)
    for key in np.flatnonzero(loads).tolist():
        totals[divmod(key, capacities.size)] = int(loads[key])

    def path(source: int, target: int, hop: int) -> Path:
        del target
        return tuple(moved.moves[source % count, list(ways[hop].path)].tolist())

    parents, depths, hops = (np.concatenate(table) for table in tables)
    return Forest(size, np.concatenate(roots), tuple(units), parents, depths, hops, path, totals)
