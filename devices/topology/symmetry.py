"""Which nodes of a graph are alike: its symmetries, each proven by trying it on every arc.

They are found by refining colours: two nodes keep one colour as long as their neighbours have the same. What is not
found only costs time: nodes that are not known to be alike are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from devices.topology.capacity import Capacities

Array = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

MISSES = 3
"""So often may the search for a symmetry fail before the rest is taken to have none."""


@final
@dataclass(frozen=True)
class Symmetry:
    """What is known of a graph's symmetries.

    Args:
        moves: permutations of the nodes that change nothing; each says where it takes those nodes that it moves.
        orbits: for each node, the first of those that are known to be alike.
    """

    moves: tuple[Mapping[int, int], ...]
    orbits: tuple[int, ...]


def symmetry(capacities: Capacities, marks: Sequence[int] = ()) -> Symmetry:
    """Return the symmetries of a graph that are found.

    Args:
        capacities: the graph.
        marks: a number for each node, which a symmetry leaves as it is.
    """
    return _Search(capacities, marks).run()


def extended(capacities: Capacities, images: Sequence[Mapping[int, int]]) -> list[Numbers | None]:
    """Return the symmetries that take the endpoints where they are told to, None for each that there is not.

    Args:
        capacities: the graph.
        images: for each symmetry, where it takes each endpoint.
    """
    search = _Search(capacities, ())
    return [search.extended(image) for image in images]


_PRIME = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Array) -> Array:
    """Return numbers that look random and depend on the given ones alone."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found: Array = values ^ (values >> np.uint64(31))
    return found


class _Search:
    def __init__(self, capacities: Capacities, marks: Sequence[int]) -> None:
        self.size = capacities.size
        ends = np.array(list(capacities.arcs), dtype=np.int64).reshape(-1, 2)
        self.sources, self.targets = ends[:, 0], ends[:, 1]
        # Capacities can be of any length, so that arcs are compared by the number of their capacity.
        numbers = {value: place for place, value in enumerate(sorted(set(capacities.arcs.values())))}
        self.kinds = np.array([numbers[value] for value in capacities.arcs.values()], dtype=np.int64)
        self.weights = _mixed(self.kinds.astype(np.uint64) * np.uint64(2) + np.uint64(1))
        marked = np.array([*marks] if marks else [0] * self.size, dtype=np.int64)
        self.marks = np.array(capacities.colours, dtype=np.int64) * (int(marked.max(initial=0)) + 1) + marked
        self.known = self._keys(np.arange(self.size))
        self.order = np.argsort(self.known)
        self.parents = list(range(self.size))
        self.moves: list[Mapping[int, int]] = []
        self.endpoints = capacities.endpoints

    def run(self) -> Symmetry:
        twins = self._join_twins()
        colours, _ = self._refined(_mixed(self.marks.astype(np.uint64) + np.uint64(7)))
        classes: dict[int, list[int]] = {}
        for node in self.endpoints:
            classes.setdefault(int(colours[node]), []).append(node)
        start = _mixed(colours + _mixed(twins.astype(np.uint64)))
        misses = 0
        for nodes in classes.values():
            first = nodes[0]
            for other in nodes[1:]:
                if misses < MISSES and self._root(other) != self._root(first) and twins[other] == twins[first]:
                    misses += not self._try(start, first, other)
        return Symmetry(tuple(self.moves), tuple(self._root(node) for node in range(self.size)))

    def extended(self, images: Mapping[int, int]) -> Numbers | None:
        """Return the symmetry that takes the endpoints where they are told to."""
        start = _mixed(self.marks.astype(np.uint64) + np.uint64(7))
        here, there = start.copy(), start.copy()
        names = _mixed(np.arange(self.size, dtype=np.uint64) + np.uint64(13))
        for node, image in images.items():
            here[node] = there[image] = names[node]
        here, _ = self._refined(here)
        there, _ = self._refined(there)
        order, counterpart = np.argsort(here, kind="stable"), np.argsort(there, kind="stable")
        if not np.array_equal(here[order], there[counterpart]):
            return None
        move = np.empty(self.size, dtype=np.int64)
        move[order] = counterpart
        return move if self._is_symmetry(move) else None

    def _keys(self, move: Numbers) -> Numbers:
        keys = (move[self.sources] * self.size + move[self.targets]) * (int(self.kinds.max(initial=0)) + 1)
        found: Numbers = keys + self.kinds
        return found

    def _join_twins(self) -> Numbers:
        """Join nodes whose links lead to the same nodes; return the place of each among its twins."""
        around: list[dict[int, list[int]]] = [{} for _ in range(self.size)]
        for source, target, kind in zip(*(x.tolist() for x in (self.sources, self.targets, self.kinds)), strict=True):
            around[source].setdefault(target, [-1, -1])[0] = kind
            around[target].setdefault(source, [-1, -1])[1] = kind
        marks = self.marks.tolist()
        places = np.zeros(self.size, dtype=np.int64)
        last: dict[Any, int] = {}
        for node, own in enumerate(around):
            # Twins either have no link between them, or one each way, which the key then counts as a link to oneself.
            within = {**own, node: [-1, -1]}
            for key in ((marks[node], frozenset((k, *v) for k, v in own.items())), (marks[node], *sorted(within))):
                before = last.get(key)
                last[key] = node
                if before is not None and _are_twins(around, before, node):
                    self.moves.append({before: node, node: before})
                    self._join(before, node)
                    places[node] = places[before] + 1
                    break
        return places

    def _refined(self, colours: Array) -> tuple[Array, int]:
        count = len(np.unique(colours))
        while count < self.size:
            around = np.zeros(self.size, dtype=np.uint64)
            with np.errstate(over="ignore"):
                np.add.at(around, self.targets, _mixed(colours[self.sources] * _PRIME + self.weights))
                np.add.at(around, self.sources, _mixed(colours[self.targets] + self.weights * _PRIME))
                colours = _mixed(colours + around * _PRIME)
            more = len(np.unique(colours))
            if more == count:
                break
            count = more
        return colours, count

    def _try(self, start: Array, first: int, other: int) -> bool:
        """Look for a symmetry that takes one node to another."""
        here, there = start.copy(), start.copy()
        chosen = first, other
        for step in range(self.size):
            for colours, node in zip((here, there), chosen, strict=True):
                colours[node] = _mixed(np.array([step + 1], dtype=np.uint64) * _PRIME)[0]
            here, count = self._refined(here)
            there, same = self._refined(there)
            if count != same:
                return False
            order, counterpart = np.argsort(here, kind="stable"), np.argsort(there, kind="stable")
            ranked = here[order]
            if not np.array_equal(ranked, there[counterpart]):
                return False
            move = np.empty(self.size, dtype=np.int64)
            move[order] = counterpart
            if self._accept(move):
                return True
            if count == self.size:
                return False
            place = int(np.flatnonzero(ranked[1:] == ranked[:-1])[0])
            chosen = int(order[place]), int(counterpart[place])
        return False

    def _accept(self, move: Numbers) -> bool:
        """Note a symmetry, if it is one."""
        if not self._is_symmetry(move):
            return False
        self.moves.append({node: image for node, image in enumerate(move.tolist()) if node != image})
        for node, image in self.moves[-1].items():
            self._join(node, image)
        return True

    def _is_symmetry(self, move: Numbers) -> bool:
        if not np.array_equal(self.marks[move], self.marks):
            return False
        return np.array_equal(np.sort(self._keys(move)), self.known[self.order])

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self.parents[max(one, other)] = min(one, other)

    def _root(self, node: int) -> int:
        parents = self.parents
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node


def _are_twins(around: Sequence[dict[int, list[int]]], one: int, other: int) -> bool:
    mine = {node: kinds for node, kinds in around[one].items() if node != other}
    yours = {node: kinds for node, kinds in around[other].items() if node != one}
    out, back = around[one].get(other, [-1, -1])
    return mine == yours and out == back
