"""The schedules that trees make: what each rank sends, receives and reduces, in `devices.algorithms`' own type.

A rank of depth d hears from its parent in step d - 1 on the way down. On the way up, where data is reduced, the deepest
ranks send first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from devices.algorithms.schedule import Action, Chunk, Copy, Program, Recv, Schedule, Send, parts
from devices.topology.forest import Forest, Path

Route = Callable[[int, int, int, bool], Path]
"""The path of a message, by its source, its target, the chunk where it is received, and whether it is reduced there."""


@final
@dataclass(frozen=True)
class Piece:
    """A share of the data of one root: the tree that sums it up, the one that spreads it, and how much it is."""

    up: int
    down: int
    units: int


def all_gather(down: Forest) -> tuple[Schedule, Route]:
    """Return the schedule in which each rank's part goes down its trees."""
    trees = len(down.units)
    chunks = _chunks("output", down) + _chunks("input", down)

    def program(rank: int) -> Program:
        steps = _Steps()
        for tree in np.flatnonzero(down.roots == rank).tolist():
            steps.add(0, Copy(trees + tree, tree))
        _descend(steps, down, rank, 0, range(trees))
        return steps.program()

    return Schedule("all_gather", down.size, chunks, program), _down_route(down, range(trees))


def reduce_scatter(up: Forest) -> tuple[Schedule, Route]:
    """Return the schedule in which each rank's part is summed up along its trees.

    Args:
        up: a forest of the graph whose links are turned round.
    """
    trees = len(up.units)
    chunks = _chunks("input", up) + _chunks("scratch", up) + _chunks("output", up)

    def program(rank: int) -> Program:
        steps = _Steps()
        has_children = np.any((up.parents == rank) & (np.arange(up.size) != rank), axis=1)
        own = [
            2 * trees + tree if root == rank else trees + tree if inner else tree
            for tree, (root, inner) in enumerate(zip(up.roots.tolist(), has_children.tolist(), strict=True))
        ]
        for tree, chunk in enumerate(own):
            if chunk != tree:
                steps.add(0, Copy(tree, chunk))
        _ascend(steps, up, rank, own)
        return steps.program()

    route = _up_route(up, range(trees))
    return Schedule("reduce_scatter", up.size, chunks, program), lambda source, target, chunk, reduces: route(
        source, target, chunk % trees, reduces
    )


def all_reduce(up: Forest, down: Forest) -> tuple[Schedule, Route]:
    """Return the schedule in which each root sums up its share and spreads it."""
    pieces = list(_pieces(up, down))
    chunks = tuple(Chunk("output", 0, piece.units) for piece in pieces)
    ups, downs = _select(up, [piece.up for piece in pieces]), _select(down, [piece.down for piece in pieces])
    deepest = int(ups.depths.max(initial=0))

    def program(rank: int) -> Program:
        steps = _Steps()
        _ascend(steps, ups, rank, range(len(pieces)))
        _descend(steps, downs, rank, deepest, range(len(pieces)))
        return steps.program()

    rising, falling = _up_route(ups, range(len(pieces))), _down_route(downs, range(len(pieces)))

    def route(source: int, target: int, chunk: int, reduces: bool) -> Path:
        return (rising if reduces else falling)(source, target, chunk, reduces)

    return Schedule("all_reduce", up.size, chunks, program), route


def broadcast(down: Forest, root: int) -> tuple[Schedule, Route]:
    """Return the schedule in which the root's data goes down its trees."""
    chunks = tuple(Chunk("output", 0, units) for units in down.units)

    def program(rank: int) -> Program:
        steps = _Steps()
        _descend(steps, down, rank, 0, range(len(chunks)))
        return steps.program()

    return Schedule("broadcast", down.size, chunks, program, root), _down_route(down, range(len(chunks)))


def reduce(up: Forest, root: int) -> tuple[Schedule, Route]:
    """Return the schedule in which data is summed up along the root's trees."""
    chunks = tuple(Chunk("output", 0, units) for units in up.units)

    def program(rank: int) -> Program:
        steps = _Steps()
        _ascend(steps, up, rank, range(len(chunks)))
        return steps.program()

    return Schedule("reduce", up.size, chunks, program, root), _up_route(up, range(len(chunks)))


def nothing(verb: str, root: int | None) -> Schedule:
    """Return the schedule of a single rank."""
    if verb in ("all_reduce", "broadcast", "reduce"):
        return Schedule(verb, 1, (Chunk("output", 0),), lambda rank: (), root)
    return Schedule(verb, 1, parts("input", 1) + parts("output", 1), lambda rank: ((Copy(0, 1),),), root)


@final
class _Steps:
    """A program while it is written."""

    def __init__(self) -> None:
        self._steps: dict[int, list[Action]] = {}

    def add(self, step: int, action: Action) -> None:
        self._steps.setdefault(step, []).append(action)

    def program(self) -> Program:
        return tuple(tuple(self._steps[step]) for step in sorted(self._steps))


def _chunks(buffer: str, forest: Forest) -> tuple[Chunk, ...]:
    found = zip(forest.roots.tolist(), forest.units, strict=True)
    return tuple(Chunk(buffer, root, units) for root, units in found)


def _children(forest: Forest, rank: int) -> Iterator[tuple[int, int]]:
    """Yield each tree and each child that a rank has there."""
    for tree, child in zip(*(each.tolist() for each in np.nonzero(forest.parents == rank)), strict=True):
        if child != rank:
            yield tree, child


def _descend(steps: _Steps, down: Forest, rank: int, start: int, chunks: range) -> None:
    for tree, child in _children(down, rank):
        steps.add(start + int(down.depths[tree, child]) - 1, Send(child, chunks[tree]))
    for tree, (parent, depth) in enumerate(
        zip(down.parents[:, rank].tolist(), down.depths[:, rank].tolist(), strict=True)
    ):
        if parent != rank:
            steps.add(start + depth - 1, Recv(parent, chunks[tree]))


def _ascend(steps: _Steps, up: Forest, rank: int, chunks: range | list[int]) -> None:
    deepest = int(up.depths.max(initial=0))
    for tree, child in _children(up, rank):
        steps.add(deepest - int(up.depths[tree, child]), Recv(child, chunks[tree], reduce=True))
    for tree, (parent, depth) in enumerate(zip(up.parents[:, rank].tolist(), up.depths[:, rank].tolist(), strict=True)):
        if parent != rank:
            steps.add(deepest - depth, Send(parent, chunks[tree]))


def _pieces(up: Forest, down: Forest) -> Iterator[Piece]:
    """Cut each root's share where its trees of either way end."""
    if up is down:
        yield from (Piece(tree, tree, units) for tree, units in enumerate(up.units))
        return
    rising = _fractions(up, down.total)
    falling = _fractions(down, up.total)
    for root in sorted(rising):
        ups, downs = rising[root], falling[root]
        while ups and downs:
            units = min(ups[0][1], downs[0][1])
            yield Piece(ups[0][0], downs[0][0], units)
            for trees in (ups, downs):
                tree, left = trees.pop(0)
                if left > units:
                    trees.insert(0, (tree, left - units))


def _fractions(forest: Forest, times: int) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for tree, (root, units) in enumerate(zip(forest.roots.tolist(), forest.units, strict=True)):
        found.setdefault(root, []).append((tree, units * times))
    return found


def _select(forest: Forest, trees: list[int]) -> Forest:
    if trees == list(range(len(forest.units))):
        return forest
    return Forest(
        forest.size,
        forest.roots[trees],
        tuple(forest.units[tree] for tree in trees),
        forest.parents[trees],
        forest.depths[trees],
        forest.hops[trees],
        forest.path,
        forest.loads,
    )


def _down_route(down: Forest, trees: range) -> Route:
    def route(source: int, target: int, chunk: int, reduces: bool) -> Path:
        return down.path(source, target, int(down.hops[trees[chunk], target]))

    return route


def _up_route(up: Forest, trees: range) -> Route:
    def route(source: int, target: int, chunk: int, reduces: bool) -> Path:
        return up.path(target, source, int(up.hops[trees[chunk], source]))[::-1]

    return route
