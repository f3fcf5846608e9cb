"""Orders of which every other line along an axis is turned round or on, so that it goes on where the last one ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from devices.topology.rings import Cost

_EQUAL = 1 + 1e-9


def twisted(order: Sequence[int], sizes: Sequence[int], cost: Cost, most: int) -> tuple[int, ...]:
    """Return the order as long as twists make it faster, the one that does most first.

    Args:
        order: one that is known.
        sizes: the length of each axis, the last varying fastest.
        cost: what an order takes.
        most: so many orders may be looked at.
    """
    best = tuple(order)
    seconds = cost.of(best)
    found: tuple[int, ...] | None = best
    while found is not None:
        found = None
        for tried in itertools.islice(_twists(best, sizes), most):
            most -= 1
            taken = cost.of(tried)
            if taken < seconds / _EQUAL:
                found, seconds = tried, taken
        best = found or best
    return best


def _twists(order: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield for each two axes the order in which the second is turned at the odd places of the first.

    >>> list(_twists(range(4), (2, 2)))
    [(0, 1, 3, 2), (0, 3, 2, 1)]
    """
    places = np.array(order).reshape(sizes)
    long = [axis for axis, length in enumerate(sizes) if length > 1]
    for one, other in itertools.permutations(long, 2):
        length = sizes[other]
        back, on = range(length - 1, -1, -1), [(at + length // 2) % length for at in range(length)]
        for turned in [back] if length == 2 else [back, on]:
            then = np.moveaxis(places.copy(), (one, other), (0, 1))
            then[1::2] = then[1::2][:, list(turned)]
            yield tuple(np.moveaxis(then, (0, 1), (one, other)).reshape(-1).tolist())
