"""Orders in which each axis of a mesh has whole factors of a topology's own axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from devices.topology.graph import Topology
from devices.topology.shapes import digits


def factored(topology: Topology, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield orders in which each axis of the mesh has whole factors of the topology's own axes.

    Both multiply to the number of devices, so that their prime factors are the same, and any mesh can be laid.
    """
    count = math.prod(sizes)
    yield tuple(range(count))
    radices, of_axes, ranks = digits(topology)
    seen = set()
    everything = tuple(range(len(radices)))
    for in_order, axes in ((True, of_axes), (True, everything), (False, of_axes), (False, everything)):
        for given in _assignments(radices, everything, sizes, in_order):
            order = _order(radices, axes, ranks, given)
            if order not in seen:
                seen.add(order)
                yield order


def _assignments(
    radices: Sequence[int], free: tuple[int, ...], sizes: Sequence[int], in_order: bool
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield for each axis of the mesh the digits of the topology that it has."""
    if not sizes:
        yield ()
        return
    *others, last = sizes
    for chosen in _chosen(radices, free, last, in_order):
        left = tuple(place for place in free if place not in chosen)
        for rest in _assignments(radices, left, others, in_order):
            yield (*rest, chosen)


def _chosen(radices: Sequence[int], free: tuple[int, ...], length: int, in_order: bool) -> Iterator[tuple[int, ...]]:
    """Yield the free digits whose radices multiply to `length`, the last first; ascending, or in every order."""
    if length == 1:
        yield ()
        return
    for place in reversed(free):
        if length % radices[place] == 0:
            left = tuple(each for each in free if (each < place if in_order else each != place))
            for rest in _chosen(radices, left, length // radices[place], in_order):
                yield (*rest, place)


def _order(
    radices: Sequence[int], of_axes: Sequence[int], ranks: Sequence[int], given: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Return the order in which each axis of the mesh runs to and fro through what it has of the topology's axes."""
    walks = [_walk(radices, of_axes, places) for places in given]
    return tuple(ranks[sum(steps)] for steps in itertools.product(*walks))


def _walk(radices: Sequence[int], of_axes: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return what the steps of one axis add to a place; digits that follow each other on an axis count as one."""
    strides = [math.prod(radices[place + 1 :]) for place in range(len(radices))]
    runs: list[tuple[int, int]] = []
    before = None
    for place in places:
        if before is not None and place == before + 1 and of_axes[place] == of_axes[before]:
            runs[-1] = runs[-1][0] * radices[place], strides[place]
        else:
            runs.append((radices[place], strides[place]))
        before = place
    steps = _to_and_fro([length for length, _ in runs])
    return [sum(at * stride for at, (_, stride) in zip(step, runs, strict=True)) for step in steps]


def _to_and_fro(radices: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all values of some digits, so that from each to the next one digit changes, by one.

    >>> _to_and_fro([2, 3])
    [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    """
    found: list[tuple[int, ...]] = [()]
    for radix in reversed(radices):
        found = [(digit, *rest) for digit in range(radix) for rest in (found if digit % 2 == 0 else reversed(found))]
    return found
