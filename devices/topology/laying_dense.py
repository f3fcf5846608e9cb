"""Whether some places of a mesh can have as many neighbours among themselves as they need."""

from __future__ import annotations

from collections.abc import Sequence


def can_be(size: int, around: Sequence[Sequence[int]], needed: Sequence[int], most: int) -> tuple[bool, int]:
    """Return whether so many places can have so many pairs of neighbours, and how many sets of places were looked at.

    Where they would be too many, it is not known, and so can be.

    Of a set of places one has no more neighbours in it than all have in the mean. So it can be put together place by
    place so that all the smaller sets have many pairs too, and there are not many such sets.

    Args:
        size: how many places.
        around: for each axis of each place its neighbours, as a number that has their bits set.
        needed: for each axis the pairs.
        most: so many sets may be looked at.
    """
    beside = [0] * len(around[0])
    for axis in around:
        beside = [one | other for one, other in zip(beside, axis, strict=True)]
    least = [0] * (size + 1)
    least[size] = sum(needed)
    for many in range(size, 1, -1):
        least[many - 1] = least[many] - 2 * least[many] // many
    # The mesh looks the same from all its places, so that the first of them is the first.
    sets = {1: 0}
    looked = 0
    for many in range(2, size + 1):
        larger: dict[int, int] = {}
        for inside, pairs in sets.items():
            edge = (1 << len(beside)) - 1
            if pairs < least[many]:
                edge = 0
                for place in members(inside):
                    edge |= beside[place]
            for place in members(edge & ~inside):
                more = pairs + (beside[place] & inside).bit_count()
                if more >= least[many]:
                    larger[inside | 1 << place] = more
            looked += 1
            if looked > most:
                return True, looked
        sets = larger
    found = any(
        all(
            sum((axis[place] & inside).bit_count() for place in members(inside)) >= 2 * pairs
            for axis, pairs in zip(around, needed, strict=True)
        )
        for inside in sets
    )
    return found, looked


def members(mask: int) -> list[int]:
    """Return the places of the bits that are set.

    >>> members(0b1010)
    [1, 3]
    """
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
