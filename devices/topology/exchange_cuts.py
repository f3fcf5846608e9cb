"""Cuts that are bad for an all_to_all. The worst is hard to find; every one is a bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.cuts import into_part
from devices.topology.symmetry import symmetry

FEW = 9
"""Up to so many devices every cut is tried."""

MANY = 8192
"""Up to so many nodes the graph's slowest vibrations, which swing across its bottlenecks, are looked for."""

LINES, ROUNDS = 4, 60
"""So many of them, among as many ways to swing as this."""


def worst_for_exchange(capacities: Capacities) -> list[list[int]]:
    """Return sides that data leaves, of cuts that may be the worst for an all_to_all."""
    size = len(capacities.endpoints)
    found: set[frozenset[int]] = set()
    if size <= FEW:
        for number in range(1, 2**size - 1):
            found.add(frozenset(node for place, node in enumerate(capacities.endpoints) if number >> place & 1))
    else:
        found.update(_alone(capacities))
        found.update(part for _, part in sorted(_swept(capacities), key=lambda each: -each[0])[:2])
    sides = []
    for part in found:
        for graph in [capacities] if capacities.is_symmetric else [capacities, capacities.reversed()]:
            _, inside_of = into_part(graph, part)
            is_near = graph is not capacities
            sides.append([node for node, there in enumerate(inside_of) if there == is_near])
    return sides


def _alone(capacities: Capacities) -> Iterator[frozenset[int]]:
    orbits = symmetry(capacities).orbits
    yield from {orbits[node]: frozenset([node]) for node in capacities.endpoints}.values()


def _swept(capacities: Capacities) -> Iterator[tuple[float, frozenset[int]]]:
    """Yield how bad it is, and the worst set among the beginnings of each of several orders of the endpoints."""
    size = capacities.size
    ends = np.array(list(capacities.arcs), dtype=np.int64)
    rates = np.array(list(capacities.arcs.values()), dtype=float)
    is_endpoint = np.zeros(size, dtype=bool)
    is_endpoint[list(capacities.endpoints)] = True
    for line in _lines(capacities, ends, rates, is_endpoint):
        line = _with_switches(line, ends, rates, is_endpoint)
        order = np.argsort(line, kind="stable")
        place = np.empty(size, dtype=np.int64)
        place[order] = np.arange(size)
        # A link from a node to a later one leaves all beginnings from the first of the two on.
        leaving = np.zeros(size + 1)
        forward = place[ends[:, 0]] < place[ends[:, 1]]
        np.add.at(leaving, place[ends[forward, 0]], rates[forward])
        np.add.at(leaving, place[ends[forward, 1]], -rates[forward])
        crossing = np.cumsum(leaving)[:size]
        inside = np.cumsum(is_endpoint[order])
        total = len(capacities.endpoints)
        worth = inside * (total - inside) / np.maximum(crossing, rates.min() / 2)
        best = int(np.argmax(worth))
        yield worth[best], frozenset(node for node in order[: best + 1].tolist() if is_endpoint[node])


Line = np.ndarray[Any, np.dtype[np.float64]]


def _lines(capacities: Capacities, ends: Any, rates: Any, is_endpoint: Any) -> Iterator[Line]:
    size = capacities.size
    numbered = np.zeros(size)
    numbered[list(capacities.endpoints)] = np.arange(len(capacities.endpoints))
    yield numbered
    yield _distances(capacities, capacities.endpoints[0])
    if size <= MANY:
        yield from _vibrations(ends, rates, size)


def _vibrations(ends: Any, rates: Any, size: int) -> list[Line]:
    """Return about the slowest vibrations of the graph, links being springs, by Lanczos's method.

    They are the slowest among some ways to swing: each is the force that the one before meets, less what of it goes
    along with those before.
    """
    degrees = np.bincount(ends[:, 0], rates, size) + np.bincount(ends[:, 1], rates, size)
    ways = np.zeros((min(ROUNDS, size - 1), size))
    forces = np.zeros_like(ways)
    way = np.random.default_rng(0).standard_normal(size)
    rigid = np.full(size, size**-0.5)
    found = 0
    for number in range(len(ways)):
        way -= (rigid @ way) * rigid
        # Twice, as what is left of the first time is small and lost in its rounding.
        for _ in range(2):
            way -= (ways[:number] @ way) @ ways[:number]
        length = float(np.sqrt(way @ way))
        if length < 1e-9 * float(degrees.max()) and number:
            break
        ways[number] = way / length
        found = number + 1
        pull = np.bincount(ends[:, 1], rates * ways[number][ends[:, 0]], size)
        pull += np.bincount(ends[:, 0], rates * ways[number][ends[:, 1]], size)
        way = degrees * ways[number] - pull
        forces[number] = way
    _, slowest = np.linalg.eigh(ways[:found] @ forces[:found].T)
    return list(slowest.T[:LINES] @ ways[:found])


def _with_switches(line: Line, ends: Any, rates: Any, is_endpoint: Any) -> Line:
    """Return the places on a line, each switch where its links draw it."""
    line = line.copy()
    for _ in range(4):
        pulled, weight = np.zeros(len(line)), np.zeros(len(line))
        np.add.at(pulled, ends[:, 1], line[ends[:, 0]] * rates)
        np.add.at(weight, ends[:, 1], rates)
        moved = np.divide(pulled, weight, out=line.copy(), where=weight > 0)
        line[~is_endpoint] = moved[~is_endpoint]
    return line


def _distances(capacities: Capacities, start: int) -> Line:
    after: list[list[int]] = [[] for _ in range(capacities.size)]
    for source, target in capacities.arcs:
        after[source].append(target)
    found = np.full(capacities.size, float(capacities.size))
    found[start] = 0
    frontier: Sequence[int] = [start]
    while frontier:
        reached = []
        for node in frontier:
            for other in after[node]:
                if found[other] == capacities.size:
                    found[other] = found[node] + 1
                    reached.append(other)
        frontier = reached
    return found
