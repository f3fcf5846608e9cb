"""The shape that a topology has: the axes of a torus, or domains in domains, as digits of its devices' places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from devices.topology.graph import Topology


def digits(topology: Topology) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return prime radices, the first the farthest; the axis that each is of; and the ranks in the order of the digits.

    A torus or a grid has its axes, one after the other. Otherwise devices that have the same neighbours are together,
    then those that the fastest links join, and such domains that the next fastest join: all are on one axis.
    """
    shape = torus_shape(topology)
    if shape is None:
        ranks, lengths = _by_nearness(topology)
        of_axes = [(prime, 0) for length in lengths for prime in reversed(primes(length))]
    else:
        ranks = tuple(range(math.prod(shape)))
        of_axes = [(prime, axis) for axis, length in enumerate(shape) for prime in reversed(primes(length))]
    return tuple(prime for prime, _ in of_axes), tuple(axis for _, axis in of_axes), ranks


def torus_shape(topology: Topology) -> tuple[int, ...] | None:
    """Return the lengths of a torus's or a grid's axes, its devices in row-major order; None if it is none."""
    count = len(topology.devices)
    if count < 2 or len(topology.nodes) != count:
        return None
    places = {node.name: place for place, node in enumerate(topology.devices)}
    joined = {(places[link.source], places[link.target]) for link in topology.links}
    for shape in _shapes(count, 3):
        strides = {math.prod(shape[axis + 1 :]) for axis in range(len(shape))}
        # Neighbours that do not go round the end of an axis are joined, whether or not it wraps; most shapes fail soon.
        inner = (pair for pair in _pairs(shape) if abs(pair[0] - pair[1]) in strides)
        if all(pair in joined for pair in inner) and joined <= set(_pairs(shape)):
            return shape
    return None


def primes(number: int) -> list[int]:
    """Return the prime factors of a number, the greatest first.

    >>> primes(12)
    [3, 2, 2]
    """
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return sorted([*found, number] if number > 1 else found, reverse=True)


def _shapes(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of so many devices, of as few axes as can be, all longer than 1."""
    yield (count,)
    for many in range(2, axes + 1):
        for lengths in itertools.product([each for each in range(2, count) if count % each == 0], repeat=many):
            if math.prod(lengths) == count:
                yield lengths


def _pairs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for place in range(math.prod(shape)):
        for length, stride in zip(shape, strides, strict=True):
            at = place // stride % length
            for step in (1, -1):
                yield place, place + stride * ((at + step) % length - at)


def _by_nearness(topology: Topology) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ranks, domain after domain, in the order of their first devices; and how many are in each other.

    Where domains of a kind are not of one size, the latter is just how many devices there are.
    """
    groups: list[list[int]] = [[rank] for rank in range(len(topology.devices))]
    rates = sorted({link.bandwidth for link in topology.links if link.bandwidth is not None}, reverse=True)
    lengths: list[int] = []
    is_even = True
    for together in (_alike(topology), *(_joined(topology, rate) for rate in rates)):
        merged: dict[int, list[int]] = {}
        for group in groups:
            merged.setdefault(together[group[0]], []).extend(group)
        if len(merged) < len(groups):
            is_even = is_even and len({len(group) for group in merged.values()}) == 1
            lengths.insert(0, len(groups) // len(merged))
        groups = list(merged.values())
    ranks = tuple(rank for group in groups for rank in group)
    return ranks, tuple(lengths) if is_even and math.prod(lengths) == len(ranks) else (len(ranks),)


def _alike(topology: Topology) -> list[int]:
    """Return for each device a number that those have in common that have the same neighbours."""
    numbers: dict[frozenset[str], int] = {}
    return [numbers.setdefault(frozenset(topology.neighbours(node.name)), len(numbers)) for node in topology.devices]


def _joined(topology: Topology, rate: float) -> list[int]:
    """Return for each device a number that those have in common that links of at least this bandwidth join."""
    parent = {node.name: node.name for node in topology.nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for link in topology.links:
        if link.bandwidth is not None and link.bandwidth >= rate:
            parent[root(link.source)] = root(link.target)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(node.name), len(numbers)) for node in topology.devices]
