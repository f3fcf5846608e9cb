"""Exchanges of devices after which everything that is said takes as long as before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from devices.topology.graph import Topology
from devices.topology.rings import Floats, Loads
from devices.topology.shapes import torus_shape
from devices.topology.symmetry import Numbers

MOST = 1 << 25
"""So many numbers are looked at to see which exchanges change nothing, at the most."""


def moves(topology: Topology, loads: Loads, domains: Sequence[Sequence[Sequence[int]]]) -> Numbers:
    """Return exchanges that change nothing, for each the device that comes to each one's place.

    Args:
        topology: the topology.
        loads: what each two of its devices load.
        domains: ways in which the devices fall into domains; two of one size are tried for each other.
    """
    tried = [
        move
        for move in dict.fromkeys((*_turned(topology), *_exchanged(loads.count, domains)))
        if all(_is_same(each, each[np.ix_(move, move)]) for each in (loads.alone, loads.latency))
    ]
    size = loads.count**2
    tried = tried[: MOST // (size * loads.links.shape[2])]
    if not tried:
        return np.empty((0, loads.count), dtype=np.int64)
    found = np.array(tried, dtype=np.int64)
    # Links that say nothing between two devices need not be looked at: as many say something before and after.
    one, other, said = np.nonzero(loads.links)
    seconds = loads.links[one, other, said]
    # What is said over a link, all of it multiplied by numbers drawn at random and summed up, says which link it was.
    weights = np.random.default_rng(1).random((loads.count, loads.count))
    back = [np.arange(loads.count), *np.argsort(found, axis=1)]
    sums = np.array([np.bincount(said, weights[at[one], at[other]] * seconds, loads.links.shape[2]) for at in back])
    links = np.argsort(sums, axis=1)
    ranked = np.take_along_axis(sums, links, axis=1)
    most = 1e-9 * float(loads.links.max())
    its = np.empty(loads.links.shape[2], dtype=np.int64)
    kept = []
    for move, same, of in zip(
        found, np.isclose(ranked[1:], ranked[0], rtol=1e-9, atol=0).all(1), links[1:], strict=True
    ):
        its[links[0]] = of
        if same and float(np.abs(loads.links[move[one], move[other], its[said]] - seconds).max()) <= most:
            kept.append(move)
    return np.array(kept, dtype=np.int64).reshape(-1, loads.count)


def turned(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the places of a mesh as one or more of its axes are turned round, the first staying where it is.

    >>> list(turned((2, 3)))
    [(0, 2, 1, 3, 5, 4)]
    """
    ways = [(tuple(range(size)), *([(0, *range(size - 1, 0, -1))] if size > 2 else [])) for size in sizes]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    for chosen in itertools.islice(itertools.product(*ways), 1, None):
        steps = [[at * stride for at in way] for way, stride in zip(chosen, strides, strict=True)]
        yield tuple(map(sum, itertools.product(*steps)))


def _is_same(one: Floats, other: Floats) -> bool:
    return float(np.abs(one - other).max()) <= 1e-9 * float(one.max())


def _turned(topology: Topology) -> Iterator[tuple[int, ...]]:
    """Yield what turns some axes of a torus round, their first devices staying where they are."""
    return turned(torus_shape(topology) or ())


def _exchanged(count: int, domains: Sequence[Sequence[Sequence[int]]]) -> Iterator[tuple[int, ...]]:
    """Yield what exchanges two domains that follow each other, or two devices of one."""
    for parts in domains:
        pairs = [*itertools.pairwise(parts), *(((a,), (b,)) for part in parts for a, b in itertools.pairwise(part))]
        for one, other in pairs:
            if len(one) == len(other):
                order = list(range(count))
                for a, b in zip(one, other, strict=True):
                    order[a], order[b] = b, a
                yield tuple(order)
