"""Trees for an all_reduce on cables that are as fast both ways: data comes back where it went, so no way matters.

Each tree is one of those that use the emptiest cables, all taken together, the nearer ones to its root first. The last
ones carry less, and fill what the others left uneven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from devices.errors import TopologyError
from devices.topology.direct import Direct
from devices.topology.forest import Forest

TREES = ((192, 32), (64, 16), (64, 8), (64, 4), (64, 2), (64, 1))
"""How many trees there are, and how much each carries."""


def spanning_forest(links: Direct, time: float, *, thrifty: bool = True) -> Forest:
    """Return a forest whose trees share the cables as evenly as can be, data going both ways.

    Args:
        links: each followed by its reverse.
        time: the least that could be, for each unit of capacity and all data being 1.
        thrifty: whether of links past switches that are as empty those come first that need least of all cables.
    """
    growth = Growth(links, time, thrifty=thrifty)
    # The order among cables that are alike in all else: any, but the same each time.
    chance = np.random.default_rng(0)
    units = [some for count, some in TREES for _ in range(count)]
    roots = np.empty(len(units), dtype=np.int64)
    table = np.full((len(units), links.size), -1, dtype=np.int64)
    starts = np.resize(chance.permutation(links.size), len(units)).tolist()
    for tree, (some, start) in enumerate(zip(units, starts, strict=True)):
        roots[tree], table[tree] = _hung(links, growth.chosen(some, start, chance), start)
    return links.forest(roots, units, table)


class Growth:
    """How full the cables are while one tree after the other is added."""

    def __init__(self, links: Direct, time: float, *, thrifty: bool = True) -> None:
        self.size = links.size
        self.time = time
        self.total = 0.0
        self.ones, self.others = links.sources[::2], links.targets[::2]
        self.distances = links.distances
        self.table, self.rates = links.cables
        last = len(self.rates) - 1
        self.arcs = [[arc for arc in row if arc != last] for row in self.table.tolist()]
        self.listed_rates = self.rates.tolist()
        self.mean = float(self.rates[:-1].mean())
        self.loads = [0.0] * len(self.rates)
        # How much of all cables a link takes for what it carries.
        self.needs = np.zeros(len(self.table))
        if thrifty and self.table.shape[1] > 1:
            self.needs = np.round((self.mean / self.rates)[self.table].sum(axis=1), 6)

    def chosen(self, some: float, start: int, chance: np.random.Generator) -> list[int]:
        """Return the emptiest cables that join all devices, and load them.

        Args:
            some: what they are to carry.
            start: of cables that are as full as each other those are taken first that are nearer to it.
            chance: orders what is alike.
        """
        near = np.minimum(self.distances[start, self.ones], self.distances[start, self.others])
        order = np.lexsort((chance.random(len(near)), near, self.needs))
        above = list(range(self.size))
        found: list[int] = []
        self.total += some
        # As full as all may be by now.
        allowed = self.total * self.time
        loads, rates, arcs = self.loads, self.listed_rates, self.arcs
        while len(found) < self.size - 1:
            if not len(order):
                raise TopologyError(
                    f"links are lacking: they join no more than {len(found) + 1} of {self.size} devices"
                )
            full = ((np.array(loads) + some) / self.rates)[self.table[order]].max(axis=1)
            turns = np.argsort(np.round(full * (2 * self.mean / some)), kind="stable")
            order, limits = order[turns], np.maximum(full[turns], allowed).tolist()
            later = []
            ends = self.ones[order].tolist(), self.others[order].tolist()
            for cable, limit, one, other in zip(order.tolist(), limits, *ends, strict=True):
                while above[one] != one:
                    above[one] = one = above[above[one]]
                while above[other] != other:
                    above[other] = other = above[above[other]]
                if one == other:
                    continue
                own = arcs[cable]
                # What has become fuller by others of this tree waits until all that are emptier have had their turn.
                if len(own) > 1 and max([(loads[arc] + some) / rates[arc] for arc in own]) > limit:
                    later.append(cable)
                    continue
                above[one] = other
                found.append(cable)
                for arc in own:
                    loads[arc] += some
                if len(found) == self.size - 1:
                    break
            order = np.array(later, dtype=np.int64)
        return found


def hung_from(links: Direct, chosen: Sequence[int], root: int) -> list[int]:
    """Return for each rank the link that enters it if the root is the top of a tree of cables."""
    entering = [-1] * links.size
    for rank, link in _walk(_around(links, chosen), root):
        entering[rank] = link
    return entering


def _hung(links: Direct, chosen: Sequence[int], start: int) -> tuple[int, list[int]]:
    """Return the middle of a tree, and for each rank the link that enters it from there."""
    around = _around(links, chosen)
    # The last that is reached from anywhere is one end of a longest path.
    *_, (end, _) = _walk(around, start)
    before = [-1] * links.size
    for rank, link in _walk(around, end):
        before[rank] = link
    way = [rank]
    while way[-1] != end:
        way.append(int(links.sources[before[way[-1]]]))
    middle = way[len(way) // 2]
    return middle, hung_from(links, chosen, middle)


def _around(links: Direct, chosen: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return for each rank the others that cables lead to, and the links to them."""
    around: list[list[tuple[int, int]]] = [[] for _ in range(links.size)]
    ones, others = links.sources[::2][chosen].tolist(), links.targets[::2][chosen].tolist()
    for cable, one, other in zip(chosen, ones, others, strict=True):
        around[one].append((other, 2 * cable))
        around[other].append((one, 2 * cable + 1))
    return around


def _walk(around: Sequence[Sequence[tuple[int, int]]], root: int) -> Iterator[tuple[int, int]]:
    """Yield each rank, the nearest first, and the link that enters it."""
    seen = [False] * len(around)
    seen[root] = True
    frontier = [root]
    yield root, -1
    while frontier:
        reached = []
        for rank in frontier:
            for other, link in around[rank]:
                if not seen[other]:
                    seen[other] = True
                    reached.append(other)
                    yield other, link
        frontier = reached
