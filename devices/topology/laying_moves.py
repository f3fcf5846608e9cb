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
    tried = list(dict.fromkeys((*_turned(topology), *_exchanged(loads.count, domains))))
    size = loads.count**2
    tried = tried[: MOST // (size * loads.links.shape[2])]
    if not tried:
        return np.empty((0, loads.count), dtype=np.int64)
    found = np.array(tried, dtype=np.int64)
    # What is said over a link, all of it multiplied by numbers drawn at random and summed up, says which link it was.
    weights = np.random.default_rng(1).random((loads.count, loads.count))
    back = np.argsort(found, axis=1)
    many = np.stack([weights, *(weights[np.ix_(move, move)] for move in back)]).reshape(len(found) + 1, size)
    sums = many @ loads.links.reshape(size, -1)
    links = np.argsort(sums, axis=1)
    ranked = np.take_along_axis(sums, links, axis=1)
    kept = []
    for move, same, its in zip(
        found, np.isclose(ranked[1:], ranked[0], rtol=1e-9, atol=0).all(1), links[1:], strict=True
    ):
        both = np.ix_(move, move)
        if (
            same
            and _is_same(loads.alone, loads.alone[both])
            and _is_same(loads.latency, loads.latency[both])
            and _is_same(loads.links[:, :, links[0]], loads.links[both][:, :, its])
        ):
            kept.append(move)
    return np.array(kept, dtype=np.int64).reshape(-1, loads.count)


def _is_same(one: Floats, other: Floats) -> bool:
    return float(np.abs(one - other).max()) <= 1e-9 * float(one.max())


def _turned(topology: Topology) -> Iterator[tuple[int, ...]]:
    """Yield what turns each axis of a torus round, its first devices staying where they are."""
    shape = torus_shape(topology)
    for axis, length in enumerate(shape or ()):
        stride = math.prod((shape or ())[axis + 1 :])
        if length > 2:
            places = range(len(topology.devices))
            yield tuple(at + (-(at // stride) % length - at // stride % length) * stride for at in places)


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
