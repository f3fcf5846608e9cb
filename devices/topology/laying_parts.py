"""A search for how a mesh can be cut up into the domains of a topology so that least goes from one to another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, final

from devices.topology.laying_bound import Domain, Kinds
from devices.topology.laying_dense import can_be, members
from devices.topology.rings import Axis, Cost

SETS = 2_000, 20_000
"""So many sets of places are looked at to say which have no so many neighbours among themselves: once, and in all."""


class _Crossed(NamedTuple):
    """An axis of which devices may have neighbours in other domains.

    Args:
        axis: its rings.
        kinds: what it takes at least.
        around: of each place its neighbours.
        times: how often each is one.
    """

    axis: Axis
    kinds: Kinds
    around: list[int]
    times: int


class _Part(NamedTuple):
    """A domain that is being filled.

    Args:
        domain: which it is.
        others: those that follow.
        rest: the places that are in none before it.
        taken: what each axis takes at least for what is said to those before.
    """

    domain: Domain
    others: Sequence[Domain]
    rest: int
    taken: Sequence[float]


class _OutOfStepsError(Exception):
    """The search has taken all the steps that it may."""


@final
class Parts:
    """A search for the parts of a mesh that the domains have.

    Places are put into one domain after the other: into the first that one which is first in the mesh, as it looks the
    same from all its places, and then those that are neighbours of what is in it already.

    Args:
        cost: what an order takes.
        kinds: what each axis takes at least, as devices have neighbours in other domains.
        domains: they have all devices.
    """

    def __init__(self, cost: Cost, kinds: Sequence[Kinds], domains: Sequence[Domain]) -> None:
        self._count = cost.count
        self._domains = sorted(domains, key=lambda each: -len(each.members))
        self._given = domains
        self._axes: list[_Crossed] = []
        self._all = [0] * cost.count
        for axis, kind in zip(cost.axes, kinds, strict=True):
            around = [0] * cost.count
            for one, other in axis.pairs:
                around[one] |= 1 << other
                around[other] |= 1 << one
            if axis.pairs:
                self._axes.append(_Crossed(axis, kind, around, 2 if axis.length == 2 else 1))
            self._all = [one | other for one, other in zip(self._all, around, strict=True)]
        self.left = 0
        """Steps that the last search did not take."""
        self._sets = 0
        self._too_many: list[list[int]] = []
        self._limit = self._seconds = math.inf
        self._found: dict[Domain, int] = {}
        self._kinds: Sequence[int] = ()
        self._floors: list[float] = []

    def least(self, limit: float, steps: int) -> tuple[float, list[list[list[int]]]]:
        """Return seconds that no order goes below, and places for each domain, each time so that they take less.

        Args:
            limit: what takes no less is not looked for.
            steps: how many places may be looked at.
        """
        self._limit, self.left, self._sets = limit, steps, SETS[1]
        found: list[list[list[int]]] = []
        choices = [
            (sum(each.kinds[kind] for each, kind in zip(self._axes, choice, strict=True)), choice)
            for choice in itertools.product(range(3), repeat=len(self._axes))
        ]
        for least, choice in sorted(choices):
            if least >= self._limit * (1 - 1e-9):
                break
            self._kinds = choice
            self._floors = [each.kinds[kind] for each, kind in zip(self._axes, choice, strict=True)]
            try:
                while self._can_be() and self._next((1 << self._count) - 1, self._domains, [0.0] * len(self._axes)):
                    found.append([members(self._found[domain]) for domain in self._given])
                    self._limit = self._seconds
            except _OutOfStepsError:
                self.left = 0
                return min(least, self._limit), found
        return self._limit, found

    def _can_be(self) -> bool:
        """Return whether a first domain can have so few neighbours in others that it takes less than the limit."""
        domain = self._domains[0]
        size, total = len(domain.members), math.fsum(self._floors)
        needed = []
        for each, kind, floor in zip(self._axes, self._kinds, self._floors, strict=True):
            seconds = self._limit - (total - floor)
            crossing = 2 * size
            if seconds < math.inf:
                crossing = min(size * kind, int(seconds * domain.capacity / each.axis.share * (1 - 1e-9)))
            # Those that have a neighbour in a line of two, which counts twice, are two by two.
            pairs = size - crossing // 2
            needed.append(max(0, -(-pairs // 2) if each.axis.length == 2 else pairs))
        if not any(needed):
            return True
        if any(all(map(int.__ge__, needed, less)) for less in self._too_many):
            return False
        found, looked = can_be(size, [each.around for each in self._axes], needed, min(SETS[0], self._sets))
        self._sets -= looked
        if not found:
            self._too_many.append(needed)
        return found

    def _next(self, rest: int, domains: Sequence[Domain], taken: Sequence[float]) -> bool:
        """Fill some domains with the rest of the places; return whether it takes less than the limit."""
        if not domains:
            self._found = {}
            self._seconds = math.fsum(map(max, self._floors, taken))
            return True
        first = rest & -rest
        tried = set()
        for at, domain in enumerate(domains):
            kind = len(domain.members), domain.capacity
            if kind in tried:
                continue
            tried.add(kind)
            part = _Part(domain, [*domains[:at], *domains[at + 1 :]], rest, taken)
            if self._grow(part, first, rest & ~first):
                return True
            if len(domains) == len(self._domains):
                # One of the first kind may have the first place, whatever the others are.
                break
        return False

    def _grow(self, part: _Part, inside: int, free: int) -> bool:
        """Fill a domain, and those that follow.

        Args:
            part: the domain.
            inside: the places in it.
            free: those that may still come in.
        """
        self.left -= 1
        if self.left < 0:
            raise _OutOfStepsError
        room = len(part.domain.members) - inside.bit_count()
        free = free if room else 0
        counted = self._counted(part, inside, free, room)
        if counted is None:
            return False
        taken, forced = counted
        if math.fsum(map(max, self._floors, taken)) >= self._limit * (1 - 1e-9):
            return False
        if not room:
            if not self._next(part.rest & ~inside, part.others, taken):
                return False
            self._found[part.domain] = inside
            return True
        if forced.bit_count() > room or free.bit_count() < room:
            return False
        chosen = forced or self._nearest(inside, free)
        if self._grow(part, inside | chosen, free & ~chosen):
            return True
        return not forced and self._grow(part, inside, free & ~chosen)

    def _counted(self, part: _Part, inside: int, free: int, room: int) -> tuple[list[float], int] | None:
        """Return what each axis takes at least, and the places that have to come in; None if it is too much."""
        forced = 0
        found = []
        places = members(inside)
        for each, kind, before in zip(self._axes, self._kinds, part.taken, strict=True):
            out = may = 0
            for place in places:
                beside = each.around[place] & ~inside
                coming = beside & free
                gone = (beside & ~free).bit_count()
                out, may = out + gone, may + coming.bit_count()
                if kind == 0:
                    forced |= beside
                elif kind == 1 and gone:
                    forced |= coming
                if gone > kind:
                    return None
            # Each that comes in has at most so many neighbours there.
            most = 1 if each.axis.length == 2 else 2
            said = (out + max(0, may - most * room)) * each.times
            found.append(max(before, said * each.axis.share / part.domain.capacity))
        return found, forced

    def _nearest(self, inside: int, free: int) -> int:
        """Return the place that has most to say to what is inside; the first if none has anything."""
        edge = 0
        for place in members(inside):
            edge |= self._all[place]
        best, chosen = 0.0, free & -free
        for place in members(edge & free):
            said = sum(each.axis.share * (each.around[place] & inside).bit_count() * each.times for each in self._axes)
            if said > best:
                best, chosen = said, 1 << place
        return chosen
