"""Which native groups the ranks of one backend make where its hardware has none of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

Place = tuple[str, int]
"""A device's host, and its number there."""


def legal_parts(places: Sequence[Place], allows: Callable[[int], bool]) -> list[list[int]]:
    """Return parts of as many devices as a native group may have: the largest first, down to single ones.

    Each part is of devices that follow each other in their order. Of parts of one size that is taken whose numbers have
    no gap, and begin at a multiple of how many they are, which is where hardware wants its groups; else the first.

    Args:
        places: the devices, in their order.
        allows: says whether a group may have so many ranks; of one it always may.

    Returns:
        The positions of each part's devices in `places`, in their order.

    >>> legal_parts([("a", index) for index in range(1, 4)], (1, 2, 4).__contains__)
    [[0], [1, 2]]
    """
    parts: list[list[int]] = []
    left = [(0, len(places))]
    while left:
        start, stop = left.pop()
        if start == stop:
            continue
        size = next(size for size in range(stop - start, 0, -1) if size == 1 or allows(size))
        first = min(range(start, stop - size + 1), key=lambda at: _misfit(places[at : at + size]))
        parts.append(list(range(first, first + size)))
        left += [(start, first), (first + size, stop)]
    return sorted(parts)


def are_symmetric(places: Sequence[Place]) -> bool:
    """Return whether these are the same devices of each host that they are on."""
    numbers: dict[str, set[int]] = {}
    for host, number in places:
        numbers.setdefault(host, set()).add(number)
    first, *others = numbers.values()
    return all(other == first for other in others)


def _misfit(places: Sequence[Place]) -> int:
    """Return how badly some devices fit as a group: 0 is best."""
    if any(host != before or number != last + 1 for (before, last), (host, number) in pairwise(places)):
        return 2
    return 1 if places[0][1] % len(places) else 0
