"""Ways for an all_to_all: between every two devices the data is cut into pieces, each on the way that is emptiest then.

A way may pass other devices, which send on what is not theirs, as chips on a torus do.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from devices.algorithms.schedule import Action, Chunk, Copy, Program, Recv, Schedule, Send
from devices.topology.alike import classes
from devices.topology.capacity import Capacities
from devices.topology.forest import Path
from devices.topology.programs import Route
from devices.topology.translations import Translations, translations

PIECES = (1, 2, 4, 8)
"""Into how many pieces the data between two devices is cut, at most the last."""

FEW = 100
"""For more devices than that, unless all are alike, nothing is cut."""

SMALL = 20
"""For so many devices at most, a way is looked for between every two; for more, from one to all at a time."""

ROUNDS = 3
"""So often is every way looked for, the others being there."""

PARTS = 256
"""Where all devices are alike, the ways of all pieces from one are looked for in so many parts, one after the other."""

STEEP = 6.0
"""A link as full as the bound allows costs e to this power times what an empty one costs."""

AT_ONCE = 8
"""So many peers does a rank talk to in one step."""


def exchanged(
    capacities: Capacities, least: Fraction
) -> tuple[Schedule, Route, Mapping[tuple[int, int], Fraction], int]:
    """Return a schedule, its routes, and the load of each arc in units, of which a rank gives so many in all.

    Args:
        capacities: the graph.
        least: a time that none goes below, for each unit of capacity, if what a rank gives is 1.
    """
    moved = translations(capacities)
    size = len(capacities.endpoints)
    best: _Ways | None = None
    for pieces in PIECES if moved is not None or size <= FEW else PIECES[:1]:
        found = _Ways(capacities, moved, pieces, least)
        if best is None or found.time() < best.time():
            best = found
        if best.time() <= least:
            break
    assert best is not None
    ways, pieces = best, best.pieces
    chunks = tuple(Chunk(buffer, part) for buffer in ("input", "output") for part in range(size) for _ in range(pieces))

    def program(rank: int) -> Program:
        steps: list[tuple[Action, ...]] = [
            tuple(Copy(rank * pieces + piece, (size + rank) * pieces + piece) for piece in range(pieces))
        ]
        for start in range(1, size, AT_ONCE):
            step: list[Action] = []
            for distance in range(start, min(start + AT_ONCE, size)):
                target, source = (rank + distance) % size, (rank - distance) % size
                for piece in range(pieces):
                    step.append(Send(target, target * pieces + piece))
                    step.append(Recv(source, (size + source) * pieces + piece))
            steps.append(tuple(step))
        return tuple(steps)

    def route(source: int, target: int, chunk: int, reduces: bool) -> Path:
        return ways.path(source, target, chunk % pieces)

    return Schedule("all_to_all", size, chunks, program), route, ways.loads(), size * pieces


class _Ways:
    """The path of every piece, and what each arc carries."""

    def __init__(self, capacities: Capacities, moved: Translations | None, pieces: int, least: Fraction) -> None:
        self.pieces = pieces
        self._capacities = capacities
        self._moved = moved
        # Where all devices are alike, one stands for all: what it loads is spread over the links of a class.
        self._sources = capacities.endpoints if moved is None else capacities.endpoints[:: moved.count]
        if moved is None:
            self._classes = {arc: number for number, arc in enumerate(capacities.arcs)}
            self._times = [Fraction(1)] * len(capacities.arcs)
            self._rates = list(capacities.arcs.values())
        else:
            self._classes, sizes, self._rates = classes(capacities, moved)
            self._times = [Fraction(moved.count, size) for size in sizes]
        self._after: dict[int, list[tuple[int, int]]] = {}
        for (source, target), number in self._classes.items():
            self._after.setdefault(source, []).append((target, number))
        self._crossed = [0] * len(self._times)
        self._paths: dict[tuple[int, int, int], Path] = {}
        full = float(least * pieces * len(capacities.endpoints))
        self._empty = 1 / np.array(self._rates, dtype=float)
        self._steep = STEEP / full * np.array([float(times) for times in self._times]) * self._empty
        for number in range(ROUNDS):
            several = self._parts()
            for piece in range(pieces):
                # The other way round each time, so that nobody always comes last.
                for source in self._sources[:: 1 if (piece + number) % 2 == 0 else -1]:
                    for targets in several:
                        self._send(source, targets, piece)
            if self.time() <= least:
                break

    def _parts(self) -> list[list[int]]:
        """Return the targets in the parts to which ways are looked for at a time, on one tree."""
        others = list(self._capacities.endpoints)
        if len(others) <= SMALL:
            return [[node] for node in others]
        if self._moved is None:
            return [others]
        # On one tree all that is behind one way goes it, so that ways that are as good have even shares of many trees.
        random.Random(0).shuffle(others)
        parts = min(len(others), PARTS // self.pieces)
        return [others[start::parts] for start in range(parts)]

    def time(self) -> Fraction:
        """Return how long the fullest arc takes, for each unit of capacity, if what a rank gives is 1."""
        whole = self.pieces * len(self._capacities.endpoints)
        return max(
            crossed * times / (whole * rate)
            for crossed, times, rate in zip(self._crossed, self._times, self._rates, strict=True)
        )

    def loads(self) -> dict[tuple[int, int], Fraction]:
        """Return the pieces that cross each arc."""
        return {arc: self._crossed[number] * self._times[number] for arc, number in self._classes.items()}

    def path(self, source: int, target: int, piece: int) -> Path:
        """Return the path between two ranks."""
        if self._moved is None:
            return self._paths[self._capacities.endpoints[source], self._capacities.endpoints[target], piece]
        block, place = divmod(source, self._moved.count)
        back = self._moved.moves[self._moved.minus(place)]
        first = self._capacities.endpoints[block * self._moved.count]
        other = int(back[self._capacities.endpoints[target]])
        return tuple(self._moved.moves[place, list(self._paths[first, other, piece])].tolist())

    def _send(self, source: int, targets: Sequence[int], piece: int) -> None:
        """Find the way of a piece from a node to several, on the tree of ways that cost least now."""
        for target in targets:
            for arc in itertools.pairwise(self._paths.get((source, target, piece), ())):
                self._crossed[self._classes[arc]] -= 1
        before = self._tree(source)
        for target in targets:
            if target == source:
                continue
            path = [target]
            while path[-1] != source:
                path.append(before[path[-1]])
            path.reverse()
            self._paths[source, target, piece] = tuple(path)
            for arc in itertools.pairwise(path):
                self._crossed[self._classes[arc]] += 1

    def _tree(self, source: int) -> dict[int, int]:
        costs = {source: 0.0}
        before: dict[int, int] = {}
        queue = [(0.0, source)]
        done: set[int] = set()
        # What is full costs more, so that what is long is taken only where it is empty.
        prices = (np.exp(np.minimum(50.0, np.array(self._crossed) * self._steep)) * self._empty).tolist()
        while queue:
            cost, node = heapq.heappop(queue)
            if node in done:
                continue
            done.add(node)
            for other, number in self._after.get(node, ()):
                there = cost + prices[number]
                if other not in costs or there < costs[other]:
                    costs[other], before[other] = there, node
                    heapq.heappush(queue, (there, other))
        return before
