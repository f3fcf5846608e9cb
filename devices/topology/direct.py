"""Links from device to device for trees to be made of: a device next to it, or some of those that switches join it to.

Of the many that a switch joins, each device has links to a few that lie all round it, by a shortest way each, the one
that is used least by the links before.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.forest import Forest, Path
from devices.topology.symmetry import Numbers

Rates = np.ndarray[Any, np.dtype[np.float64]]

ALL = 9
"""If switches join a device to so many at most, it has a link to each."""

TURNS = (0.382, 0.236, 0.146, 0.472, 0.292)
"""How far round the others are: no two nearly the same, none nearly a half, and none a multiple of another."""

FASTER = 2
"""Where others have so many times a device's capacity, it has links to them: they can pass on data for many."""


@final
@dataclass(frozen=True)
class Direct:
    """Links between devices; where cables are as fast both ways, each is followed by its reverse.

    Args:
        size: how many devices there are.
        sources: the rank that each link leaves.
        targets: the rank that it enters.
        paths: the nodes on it.
        capacities: the graph.
    """

    size: int
    sources: Numbers
    targets: Numbers
    paths: tuple[Path, ...] = field(repr=False)
    capacities: Capacities = field(repr=False)

    @cached_property
    def into(self) -> tuple[Numbers, ...]:
        """For each rank the links that enter it."""
        order = np.argsort(self.targets, kind="stable")
        return tuple(np.split(order, np.searchsorted(self.targets[order], np.arange(1, self.size))))

    @cached_property
    def arcs(self) -> tuple[Numbers, Rates]:
        """The numbers of the arcs on each link, as many for all, and the capacity of each arc.

        The last arc is none, and fills up what is short.
        """
        return self._numbered([list(itertools.pairwise(path)) for path in self.paths])

    @cached_property
    def cables(self) -> tuple[Numbers, Rates]:
        """The same of the cables on each link and its reverse, where all are as fast both ways."""
        return self._numbered(
            [[(min(ends), max(ends)) for ends in itertools.pairwise(path)] for path in self.paths[::2]]
        )

    def _numbered(self, ways: Sequence[Sequence[tuple[int, int]]]) -> tuple[Numbers, Rates]:
        numbers: dict[tuple[int, int], int] = {}
        rows = [[numbers.setdefault(arc, len(numbers)) for arc in way] for way in ways]
        longest = max(map(len, rows))
        table = np.array([[*row, *[len(numbers)] * (longest - len(row))] for row in rows], dtype=np.int64)
        return table, np.array([*(float(self.capacities.arcs[arc]) for arc in numbers), np.inf])

    @cached_property
    def distances(self) -> Numbers:
        """Over how many links each rank is from each other."""
        joined = np.zeros((self.size, self.size), dtype=np.float32)
        joined[self.sources, self.targets] = 1
        found: Numbers = np.full((self.size, self.size), -1, dtype=np.int64)
        frontier = np.eye(self.size, dtype=bool)
        steps = 0
        while frontier.any():
            found[frontier] = steps
            frontier = (frontier.astype(np.float32) @ joined > 0) & (found < 0)
            steps += 1
        return found

    def forest(self, roots: Numbers, units: Sequence[int], links: Numbers) -> Forest:
        """Return trees as a forest.

        Args:
            roots: of each tree.
            units: what each carries.
            links: for each tree and rank the link that enters it; -1 at the root.
        """
        parents = np.where(links < 0, roots[:, None], self.sources[links])
        depths = np.zeros_like(parents)
        above = parents.copy()
        # Who is not the root is one deeper than it was known to be, until the root is above all.
        below = np.arange(self.size) != roots[:, None]
        for _ in range(self.size):
            if not below.any():
                break
            depths += below
            below = above != roots[:, None]
            above = np.take_along_axis(parents, above, axis=1)
        assert not below.any(), "a tree goes round"
        loads: dict[tuple[int, int], int] = {}
        for some in set(units):
            trees = [tree for tree, each in enumerate(units) if each == some]
            used = np.bincount(links[trees][links[trees] >= 0], minlength=len(self.paths))
            for link in np.flatnonzero(used).tolist():
                for arc in itertools.pairwise(self.paths[link]):
                    loads[arc] = loads.get(arc, 0) + some * int(used[link])
        order = np.argsort(roots, kind="stable")
        listed = [units[tree] for tree in order.tolist()]
        return Forest(
            self.size, roots[order], tuple(listed), parents[order], depths[order], links[order], self._path, loads
        )

    def _path(self, source: int, target: int, link: int) -> Path:
        assert (self.sources[link], self.targets[link]) == (source, target)
        return self.paths[link]


def direct(capacities: Capacities) -> Direct:
    """Return links between devices."""
    ranks = {node: rank for rank, node in enumerate(capacities.endpoints)}
    after: list[list[int]] = [[] for _ in range(capacities.size)]
    before: list[list[int]] = [[] for _ in range(capacities.size)]
    for source, target in capacities.arcs:
        after[source].append(target)
        before[target].append(source)
    found: dict[Path, None] = {}
    used = dict.fromkeys(capacities.arcs, 0.0)
    steps: dict[int, dict[int, int]] = {}
    rates = {node: sum(capacities.arcs[node, other] for other in after[node]) for node in ranks}
    for node in capacities.endpoints:
        for first in after[node]:
            if first in ranks:
                found[node, first] = None
                continue
            if first not in steps:
                steps[first] = _steps(after, ranks, first)
            others = [other for other in ranks if other in steps[first] and other != node]
            for target in _around(node, others, steps[first], rates):
                path = (node, *_way(before, steps[first], target, used, capacities, ranks))
                if capacities.is_symmetric and path[0] > path[-1]:
                    path = path[::-1]
                if path not in found:
                    found[path] = None
                    for arc in itertools.pairwise(path):
                        used[arc] += 1 / capacities.arcs[arc]
    if capacities.is_symmetric:
        found = dict.fromkeys(way for path in found if path[0] < path[-1] for way in (path, path[::-1]))
    paths = tuple(found)
    return Direct(
        len(ranks),
        np.array([ranks[path[0]] for path in paths], dtype=np.int64),
        np.array([ranks[path[-1]] for path in paths], dtype=np.int64),
        paths,
        capacities,
    )


def _steps(after: Sequence[Sequence[int]], ranks: Mapping[int, int], first: int) -> dict[int, int]:
    """Return how far each node is from a switch, if no device may be on the way."""
    found = {first: 0}
    frontier = [first]
    while frontier:
        reached = []
        for node in frontier:
            for other in after[node]:
                if other not in found:
                    found[other] = found[node] + 1
                    if other not in ranks:
                        reached.append(other)
        frontier = reached
    return found


def _around(node: int, others: Sequence[int], steps: Mapping[int, int], rates: Mapping[int, int]) -> Sequence[int]:
    """Return other devices that lie all round a device, the next of the nearest, and some that are much faster."""
    if len(others) <= ALL:
        return others
    least = min(steps[other] for other in others)
    near = [other for other in others if steps[other] == least]
    found = [*_spread(node, others), near[bisect.bisect(near, node) % len(near)]]
    most = max(rates[other] for other in others)
    if most >= FASTER * rates[node]:
        found += _spread(node, [other for other in others if rates[other] * 2 > most])
    return found


def _spread(node: int, others: Sequence[int]) -> Sequence[int]:
    """Return the next of others, so that none are left apart, and some that lie all round; all if they are few."""
    if len(others) <= ALL:
        return others
    place = bisect.bisect(others, node)
    count = len(others) + 1
    return [others[place % len(others)], *(others[(place + round(turn * count) - 1) % len(others)] for turn in TURNS)]


def _way(
    before: Sequence[Sequence[int]],
    steps: Mapping[int, int],
    target: int,
    used: Mapping[tuple[int, int], float],
    capacities: Capacities,
    ranks: Mapping[int, int],
) -> Path:
    """Return a shortest way from the switch that has no steps, on the links that are used least."""
    path = [target]
    while steps[path[-1]]:
        node = path[-1]
        nearer = [other for other in before[node] if other not in ranks and steps.get(other, -1) == steps[node] - 1]
        path.append(min(nearer, key=lambda other: used[other, node]))
    return tuple(reversed(path))
