"""Who of a group is in which domain, and which rank there has which part of what the domain holds together."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, final


@final
@dataclass(frozen=True, slots=True)
class Domains:
    """The domains of a group: sets of ranks that reach each other natively.

    Args:
        members: the ranks of the group by domain, ascending in each.
        names: what each domain is called, for errors and `devices.explain()`.
    """

    members: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    @staticmethod
    def of(said: Sequence[tuple[str, str]]) -> Domains:
        """Return the domains of ranks by what each rank says: its domain's key, and what that is called.

        They come in the order of their first ranks. Those that are called the same are numbered.
        """
        by_key: dict[str, list[int]] = {}
        for rank, (key, _) in enumerate(said):
            by_key.setdefault(key, []).append(rank)
        called = [said[ranks[0]][1] for ranks in by_key.values()]
        names = [
            name if called.count(name) == 1 else f"{name} ({called[: at + 1].count(name)})"
            for at, name in enumerate(called)
        ]
        return Domains(tuple(map(tuple, by_key.values())), tuple(names))

    def of_rank(self, rank: int) -> int:
        """Return the domain that a rank of the group is in."""
        return next(at for at, ranks in enumerate(self.members) if rank in ranks)

    @property
    def unit(self) -> int:
        """The least number of elements that the ranks of each domain have equal parts of."""
        return math.lcm(*map(len, self.members))

    def shown(self, ranks: Sequence[int]) -> str:
        """Return who is where, in words.

        Args:
            ranks: what the ranks of the group are called: their ranks in the world.
        """
        called = [_ranks([ranks[rank] for rank in members]) for members in self.members]
        return " and ".join(f"{name} ({ranks})" for name, ranks in zip(self.names, called, strict=True))


class Crossing(NamedTuple):
    """What one rank of a domain has, and one rank of another domain is to get: elements of what is passed on.

    Args:
        sender: the place of the first in its domain.
        receiver: that of the second.
        start: the first of the elements.
        stop: the one after the last.
    """

    sender: int
    receiver: int
    start: int
    stop: int


def crossings(senders: Sequence[int], receivers: Sequence[int]) -> list[Crossing]:
    """Return the messages by which what lies in parts at the senders comes in parts to the receivers.

    Args:
        senders: where their parts begin, and where the last one ends.
        receivers: the same of theirs.

    >>> crossings([0, 3, 6], [0, 2, 4, 6])
    [Crossing(sender=0, receiver=0, start=0, stop=2), Crossing(sender=0, receiver=1, start=2, stop=3), \
Crossing(sender=1, receiver=1, start=3, stop=4), Crossing(sender=1, receiver=2, start=4, stop=6)]
    """
    return [
        Crossing(_part(senders, start), _part(receivers, start), start, stop)
        for start, stop in pairwise(sorted({*senders, *receivers}))
    ]


def overlaps(first: Sequence[int], second: Sequence[int]) -> list[list[int]]:
    """Return how much each part of some elements has of each part of another division of them.

    Args:
        first: where the parts of the one begin, and where the last one ends.
        second: the same of the other.

    >>> overlaps([0, 4, 6], [0, 3, 6])
    [[3, 1], [0, 2]]
    """
    return [
        [max(0, min(stop, end) - max(start, begin)) for begin, end in pairwise(second)]
        for start, stop in pairwise(first)
    ]


class Lane(NamedTuple):
    """Elements that one rank of each domain has a sum of, which those ranks add up among themselves, in equal parts.

    Args:
        ranks: these ranks' places, by domain.
        cuts: where the part that the rank of each domain adds up begins, and where the last one ends.
    """

    ranks: tuple[int, ...]
    cuts: tuple[int, ...]


def lanes(parts: Sequence[Sequence[int]]) -> list[Lane]:
    """Return the lanes of what lies in parts at the ranks of each domain: where those begin, and the last one ends.

    >>> lanes([[0, 6], [0, 2, 4, 6]])
    [Lane(ranks=(0, 0), cuts=(0, 1, 2)), Lane(ranks=(0, 1), cuts=(2, 3, 4)), Lane(ranks=(0, 2), cuts=(4, 5, 6))]
    """
    count = len(parts)
    return [
        Lane(
            tuple(_part(cuts, start) for cuts in parts),
            tuple(start + (stop - start) * at // count for at in range(count + 1)),
        )
        for start, stop in pairwise(sorted({cut for cuts in parts for cut in cuts}))
    ]


def _part(cuts: Sequence[int], at: int) -> int:
    """Return which part the element at a place is in; the parts before it may be empty."""
    return bisect_right(cuts, at) - 1


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
