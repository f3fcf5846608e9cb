"""How much of what passes between domains each of their ranks carries: as much as its link lets it, of what all can."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import final

from devices.domains.members import Domains, Lane, lanes
from devices.topology.unequal import shares

_KEPT = 256
"""So many lengths' parts are remembered."""


_BLOCK = 64
"""Parts of many elements begin at multiples of so many."""


@final
class Shares:
    """The parts that the ranks of each domain have of what crosses: the same on every rank, and from call to call.

    Args:
        domains: who is where.
        bandwidths: bytes per second of each rank's way to other domains, by rank of the group; None where that is not
            known, and the parts are equal.
    """

    def __init__(self, domains: Domains, bandwidths: Sequence[float] | None = None) -> None:
        self._members = domains.members
        self.bandwidths = bandwidths
        self.are_uneven = bandwidths is not None and any(
            len({bandwidths[rank] for rank in ranks}) > 1 for ranks in domains.members
        )
        """Whether some domain's ranks have parts that are not equal."""
        self._cuts: dict[tuple[int, int], tuple[int, ...]] = {}
        self._lanes: dict[int, list[Lane]] = {}

    def cuts(self, domain: int, length: int) -> tuple[int, ...]:
        """Return where the parts of a domain's ranks begin, of `length` elements, and where the last one ends."""
        found = self._cuts.get((domain, length))
        if found is None:
            if len(self._cuts) > _KEPT:
                self._cuts.clear()
            self._cuts[domain, length] = found = self._new_cuts(domain, length)
        return found

    def _new_cuts(self, domain: int, length: int) -> tuple[int, ...]:
        ranks = self._members[domain]
        speeds = [1.0] * len(ranks) if self.bandwidths is None else [self.bandwidths[rank] for rank in ranks]
        if len(set(speeds)) == 1:
            return tuple(length * at // len(ranks) for at in range(len(ranks) + 1))
        # What begins where a cache line does is reduced and copied sooner.
        block = _BLOCK if length >= _BLOCK * _BLOCK else 1
        *cuts, _ = accumulate(shares(length // block, speeds).sizes, initial=0)
        return (*(at * block for at in cuts), length)

    def lanes(self, length: int) -> list[Lane]:
        """Return the lanes of `length` elements that every domain has a sum of."""
        found = self._lanes.get(length)
        if found is None:
            if len(self._lanes) > _KEPT:
                self._lanes.clear()
            self._lanes[length] = found = lanes([self.cuts(at, length) for at in range(len(self._members))])
        return found
