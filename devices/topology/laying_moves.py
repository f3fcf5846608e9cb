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
    # A link's loads, all multiplied by numbers drawn at random and summed up, tell it from links with others.
    weights = np.random.default_rng(1).random((loads.count, loads.count))
    back = np.argsort(found, axis=1)
    many = np.stack([weights, *(weights[np.ix_(move, move)] for move in back)]).reshape(len(found) + 1, size)
    sums = np.sort(many @ loads.links.reshape(size, -1), axis=1)
    same = np.isclose(sums[1:], sums[0], rtol=1e-9, atol=0).all(1)
    for number, move in enumerate(found):
        both = np.ix_(move, move)
        same[number] &= bool(_is_same(loads.alone, loads.alone[both]) and _is_same(loads.latency, loads.latency[both]))
    kept: Numbers = found[same]
    return kept


def _is_same(one: Floats, other: Floats) -> bool:
    return bool(np.isclose(one, other, rtol=1e-9, atol=0).all())


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
