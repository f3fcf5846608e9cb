"""Trees for graphs of many unlike devices: some that are near enough, then hung elsewhere where links are too full.

A device of a tree, with all below it, may hang from any other that is not below it. Where a link is fuller than it has
to be, some of the trees take another link into the same device. A few of the trees carry less than the others, and fill
what those leave uneven.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from devices.topology.direct import Direct
from devices.topology.forest import Forest
from devices.topology.grown import grown_tree
from devices.topology.spanning import Growth, hung_from
from devices.topology.symmetry import Numbers

Flags = np.ndarray[Any, np.dtype[np.bool_]]

FEW = 64
"""Of fewer roots than that there are about so many trees, which are grown."""

MANY = 256
"""Of more roots there are about so many trees at least."""

IDLE = 2
"""Sweeps that leave the fullest link as full as it was are the last after so many."""

GOAL = 1.001
"""A link that takes no longer than so many times the least time is not too full."""

SWEEPS = 16
"""So often are all links looked at, at most."""


def rehung_forest(links: Direct, shares: Mapping[int, Fraction], time: Fraction) -> Forest:
    """Return a forest with some trees for each endpoint that has a share.

    Args:
        links: between the endpoints; all as fast one way as the other, if they lead through switches.
        shares: how much of the data each has; together 1.
        time: the least that could be, for each unit of capacity and all data being 1.
    """
    roots, units = _cut(links.capacities.endpoints, shares)
    whole = sum(units)
    hanging = _Hanging(links, roots, units, float(time) * whole * GOAL)
    if len(set(roots.tolist())) < FEW:
        hanging.grow()
    elif links.arcs[0].shape[1] == 1:
        hanging.spread()
    else:
        hanging.span(2 * float(time))
    fullest, idle = hanging.fullest(), 0
    for _ in range(SWEEPS):
        if not hanging.sweep() or idle == IDLE:
            break
        before, fullest = fullest, hanging.fullest()
        idle = 0 if fullest < before else idle + 1
    return links.forest(roots, units, hanging.entering)


def _cut(endpoints: Sequence[int], shares: Mapping[int, Fraction]) -> tuple[Numbers, list[int]]:
    """Return the root of each tree and the whole units that it carries."""
    holders = sum(share > 0 for share in shares.values())
    several = len(endpoints) * -(-MANY // len(endpoints)) if holders >= FEW else FEW
    every, pieces = (8, 4) if holders >= FEW else (16, 16)
    found: list[tuple[int, Fraction]] = []
    number = 0
    for rank, node in enumerate(endpoints):
        parts = math.ceil(shares[node] * several)
        for _ in range(parts):
            cuts = pieces if number % every == 0 else 1
            found += [(rank, shares[node] / (parts * cuts))] * cuts
            number += 1
    below = math.lcm(*(some.denominator for _, some in found))
    return np.array([rank for rank, _ in found], dtype=np.int64), [int(some * below) for _, some in found]


class _Hanging:
    """Trees, and how full the links are with them."""

    def __init__(self, links: Direct, roots: Numbers, units: Sequence[int], time: float) -> None:
        self.links = links
        self.roots = roots
        self.units = [float(some) for some in units]
        self.time = time
        table, rates = links.arcs
        last = len(rates) - 1
        self.table = table
        self.arcs: list[list[int]] = [[arc for arc in row if arc != last] for row in table.tolist()]
        self.rates: list[float] = rates.tolist()
        self.quotas: list[float] = (rates * time).tolist()
        self.loads = [0.0] * len(self.rates)
        self.entering = np.full((len(roots), links.size), -1, dtype=np.int64)
        self.parents = np.repeat(roots[:, None], links.size, axis=1)

    def grow(self) -> None:
        """Start with trees that grow where links are emptiest."""
        ways: list[list[tuple[int, tuple[int, ...], int]]] = [[] for _ in range(self.links.size)]
        for link, (source, target) in enumerate(
            zip(self.links.sources.tolist(), self.links.targets.tolist(), strict=True)
        ):
            ways[source].append((target, tuple(self.arcs[link]), link))
        for tree, (root, some) in enumerate(zip(self.roots.tolist(), self.units, strict=True)):
            _, _, chosen = grown_tree(root, some, self.links.size, ways, self.rates, self.loads)
            self._hang(tree, chosen)

    def span(self, time: float) -> None:
        """Start with trees that share the cables evenly, as if data also came back on them."""
        growth = Growth(self.links, time)
        chance = np.random.default_rng(0)
        least = min(self.units)
        for tree, (root, some) in enumerate(zip(self.roots.tolist(), self.units, strict=True)):
            chosen = hung_from(self.links, growth.chosen(some / least, root, chance), root)
            self._hang(tree, chosen)
            for link in chosen:
                if link >= 0:
                    for arc in self.arcs[link]:
                        self.loads[arc] += some

    def spread(self) -> None:
        """Start with shortest ways, each device hearing as evenly as it can from those before it."""
        near = self.links.distances[self.roots]
        for rank, into in enumerate(self.links.into):
            sources = self.links.sources[into]
            leads = near[:, sources] == near[:, [rank]] - 1
            places = [np.flatnonzero(row).tolist() for row in leads]
            arcs = [self.arcs[link][0] for link in into.tolist()]
            chosen = np.full(len(self.roots), -1, dtype=np.int64)
            # Those that have no choice come first, of the others those that carry most.
            for _, most, tree in sorted(
                (len(some), -units, tree) for tree, (some, units) in enumerate(zip(places, self.units, strict=True))
            ):
                if places[tree]:
                    fullness = [(self.loads[arcs[place]] - most) / self.rates[arcs[place]] for place in places[tree]]
                    place = places[tree][fullness.index(min(fullness))]
                    self.loads[arcs[place]] -= most
                    chosen[tree] = place
            there = chosen >= 0
            self.entering[there, rank] = into[chosen[there]]
            self.parents[there, rank] = sources[chosen[there]]

    def fullest(self) -> float:
        """Return how full the fullest link is, 1 being what it should be at most."""
        return max([load / quota for load, quota in zip(self.loads, self.quotas, strict=True)])

    def sweep(self) -> bool:
        """Hang devices elsewhere wherever links are too full; return whether any was and could be."""
        full = np.array([load > quota * (1 + 1e-12) for load, quota in zip(self.loads, self.quotas, strict=True)])
        ranks = np.unique(self.links.targets[full[self.table].any(axis=1)]).tolist()
        moved = False
        for rank in ranks:
            moved |= self._relieve(rank)
        return moved

    def _hang(self, tree: int, chosen: Sequence[int]) -> None:
        self.entering[tree] = chosen
        self.parents[tree] = np.where(self.entering[tree] < 0, self.roots[tree], self.links.sources[chosen])

    def _fullness(self, link: int) -> float:
        fullest: float = max([self.loads[arc] / self.quotas[arc] for arc in self.arcs[link]])
        return fullest

    def _relieve(self, rank: int) -> bool:
        """Let trees take other links into a device than those that are too full."""
        into = self.links.into[rank].tolist()
        moved = False
        for full in sorted(into, key=self._fullness, reverse=True):
            if self._fullness(full) <= 1 + 1e-12:
                break
            for other in sorted(into, key=self._fullness):
                if other != full and self._fullness(other) < self._fullness(full) > 1 + 1e-12:
                    trees = np.flatnonzero(self.entering[:, rank] == full)
                    can = trees[~self._is_below(trees, int(self.links.sources[other]), rank)]
                    moved |= self._move(can, {rank: full}, {rank: other})
            if self.links.capacities.is_symmetric:
                moved |= self._turn(rank, full, into)
        return moved

    def _turn(self, rank: int, full: int, into: Sequence[int]) -> bool:
        """Let a device hear from one that is next below it, and that one from elsewhere."""
        moved = False
        for back in sorted(into, key=self._fullness):
            if self._fullness(full) <= 1 + 1e-12 or self._fullness(back) >= self._fullness(full):
                break
            # Of a link and its reverse one is even, the other the odd one after it.
            forth, child = back ^ 1, int(self.links.sources[back])
            trees = np.flatnonzero((self.entering[:, rank] == full) & (self.entering[:, child] == forth))
            for other in sorted(self.links.into[child].tolist(), key=self._fullness):
                if not len(trees) or self._fullness(other) >= self._fullness(full) or self._fullness(full) <= 1 + 1e-12:
                    break
                can = trees[~self._is_below(trees, int(self.links.sources[other]), rank)]
                moved |= self._move(can, {rank: full, child: forth}, {rank: back, child: other})
                trees = trees[self.entering[trees, rank] == full]
        return moved

    def _move(self, trees: Numbers, olds: Mapping[int, int], news: Mapping[int, int]) -> bool:
        """Let trees enter devices by other links as long as that makes the fullest of all of them emptier."""
        change: dict[int, int] = {}
        for links, sign in ((olds, -1), (news, 1)):
            for link in links.values():
                for arc in self.arcs[link]:
                    change[arc] = change.get(arc, 0) + sign
        leaves = [arc for arc, sign in change.items() if sign < 0]
        enters = [arc for arc, sign in change.items() if sign > 0]
        loads, quotas = self.loads, self.quotas
        taken = []
        for tree in sorted(trees.tolist(), key=lambda tree: -self.units[tree]):
            fullest = max([loads[arc] / quotas[arc] for arc in leaves], default=0.0)
            if fullest <= 1 + 1e-12:
                break
            some = self.units[tree]
            after = max([(loads[arc] + change[arc] * some) / quotas[arc] for arc in enters], default=0.0)
            if after < max(fullest - 1e-9, 1):
                for arc, sign in change.items():
                    loads[arc] += sign * some
                taken.append(tree)
        for rank, link in news.items():
            self.entering[taken, rank] = link
            self.parents[taken, rank] = self.links.sources[link]
        return bool(taken)

    def _is_below(self, trees: Numbers, source: int, rank: int) -> Flags:
        """Return for each tree whether a device is another one, or below it."""
        place = np.full(len(trees), source)
        below: Flags = place == rank
        active = np.flatnonzero(~below & (place != self.roots[trees]))
        while len(active):
            place[active] = self.parents[trees[active], place[active]]
            below[active] = place[active] == rank
            active = active[(place[active] != rank) & (place[active] != self.roots[trees[active]])]
        return below
