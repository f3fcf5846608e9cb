"""An all_to_all by the lanes of its domains: each message goes by the ranks whose links have room for it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, final

import torch

from devices.algorithms.pipeline import Piece
from devices.domains.bridge import Bridge
from devices.domains.members import Domains
from devices.domains.shares import Shares

Tensor = torch.Tensor

Counts = Sequence[Sequence[int]]
"""The bytes that each rank of the group sends to each, row by row."""


class Leg(NamedTuple):
    """A part of a message between two domains, and its way.

    Args:
        source: the rank that has it.
        leaves: the rank by whose link it leaves the source's domain.
        enters: the rank by whose link it comes into the target's.
        target: the rank that is to have it.
        start: the first of its bytes in the message.
        stop: the one after the last.
    """

    source: int
    leaves: int
    enters: int
    target: int
    start: int
    stop: int


def legs(counts: Counts, domains: Domains, shares: Shares, mine: int) -> list[Leg]:
    """Return all parts of messages that leave a domain or come into it, in an order that all its ranks have.

    What goes from one domain to another is divided among the ranks of either as their links are, wherever it comes from
    and goes to.
    """
    found = []
    for first, members in enumerate(domains.members):
        for second, others in enumerate(domains.members):
            if first == second or mine not in (first, second):
                continue
            messages = [(source, target) for source in members for target in others]
            starts = list(accumulate((counts[source][target] for source, target in messages), initial=0))
            out, into = shares.cuts(first, starts[-1]), shares.cuts(second, starts[-1])
            for start, stop in pairwise(sorted({*starts, *out, *into})):
                at = _part(starts, start)
                source, target = messages[at]
                leaves, enters = members[_part(out, start)], others[_part(into, start)]
                found.append(Leg(source, leaves, enters, target, start - starts[at], stop - starts[at]))
    return found


def spans(counts: Counts, domains: Domains, piece: int) -> Iterator[tuple[int, int]]:
    """Yield from which byte to which of every message pieces go, one after the other.

    Args:
        counts: the bytes of all messages.
        domains: who is where.
        piece: at most so many bytes of a piece cross from one domain to another, of each message one at least.
    """
    ways = [
        sorted(counts[source][target] for source in members for target in others)
        for members in domains.members
        for others in domains.members
        if members != others
    ]
    longest = max(count for rank, row in enumerate(counts) for peer, count in enumerate(row) if peer != rank)
    start = 0
    while start < longest:
        left = [[count - start for count in way if count > start] for way in ways]
        stop = min([longest, *(start + _level(lengths, piece) for lengths in left if sum(lengths) > piece)])
        yield start, stop
        start = stop


def _level(lengths: Sequence[int], room: int) -> int:
    """Return of how many bytes of each of some messages there is room for, those that are shorter being there whole.

    Args:
        lengths: of the messages, the shortest first; together more than there is room for.
        room: in bytes.
    """
    left = len(lengths)
    for length in lengths:
        if length * left > room:
            break
        room, left = room - length, left - 1
    return max(room // left, 1)


@final
class Swap:
    """An all_to_all of one rank of a group.

    Args:
        rank: this rank.
        domains: who is where.
        shares: how much of what crosses each rank carries.
        bridge: carries it, and what stays in the domain.
    """

    def __init__(self, rank: int, domains: Domains, shares: Shares, bridge: Bridge) -> None:
        self._rank, self._domains, self._shares, self._bridge = rank, domains, shares, bridge
        self._mine = domains.of_rank(rank)

    def pieces(self, sent: Sequence[Tensor], came: Sequence[Tensor], counts: Counts, piece: int) -> Iterator[Piece]:
        """Return the pieces of what is swapped, all of them the same on every rank.

        Args:
            sent: what this rank has for each, in bytes.
            came: what it is to have from each.
            counts: the bytes of all of it.
            piece: at most about so many bytes of a piece cross from one domain to another.
        """
        before: Counts = ()
        for start, stop in spans(counts, self._domains, piece):
            part = [[min(max(count - start, 0), stop - start) for count in row] for row in counts]
            if part != before:
                found, before = legs(part, self._domains, self._shares, self._mine), part
            slices = [[tensor[start:stop] for tensor in whole] for whole in (sent, came)]
            yield self._piece(slices[0], slices[1], found)

    def _piece(self, sent: Sequence[Tensor], came: Sequence[Tensor], found: Sequence[Leg]) -> Piece:
        """Take parts to the ranks that they leave by, from there to those that they come in by, and on to the last."""
        me, start = self._rank, self._bridge.start
        near = [rank for rank in self._domains.members[self._mine] if rank != me]
        sends, recvs = [(rank, sent[rank]) for rank in near], [(rank, came[rank]) for rank in near]
        leaving, entering = [], []
        onward: tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]] = [], []
        for leg in found:
            has = sent[leg.target][leg.start : leg.stop] if leg.source == me else None
            gets = came[leg.source][leg.start : leg.stop] if leg.target == me else None
            if leg.leaves == me:
                if has is None:
                    has = sent[me].new_empty(leg.stop - leg.start)
                    recvs.append((leg.source, has))
                leaving.append((leg.enters, has))
            elif has is not None:
                sends.append((leg.leaves, has))
            if leg.enters == me:
                taken = gets if gets is not None else sent[me].new_empty(leg.stop - leg.start)
                entering.append((leg.leaves, taken))
                if gets is None:
                    onward[0].append((leg.target, taken))
            elif gets is not None:
                onward[1].append((leg.enters, gets))
        yield start(sends, recvs)
        yield start(leaving, entering)
        yield start(*onward)


def _part(starts: Sequence[int], at: int) -> int:
    """Return which part the byte at a place is in; the parts before it may be empty."""
    return bisect_right(starts, at) - 1
