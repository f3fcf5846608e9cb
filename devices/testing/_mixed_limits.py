"""The limits of ranks of several kinds: each its own target's, and in a group of several those of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import final

from devices._backend import Group
from devices._interop import Side
from devices._observer import Called, Ended, Observer
from devices.catalogue import Target
from devices.errors import UnsupportedError
from devices.testing._emulation import Emulation


@final
class MixedLimits(Observer):
    """Refuses, on every rank alike, what one of the targets in a group cannot do, and names all of them.

    Args:
        targets: what the sides of the world are, with the limits that hold for them.
        sides: the sides of the world.
        sides_of: returns the sides of a group, given its ranks of the world.
        domains: which sides of the world reach each other natively.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        sides: Sequence[Side],
        sides_of: Callable[[Sequence[int]], list[Side]],
        domains: Sequence[Sequence[Side]],
    ) -> None:
        self.by_side = [Emulation(each, compose=True, enforce=True, device_tensors=False) for each in targets]
        self._sides = list(sides)
        self._sides_of = sides_of
        self._domains = domains
        self._size = sum(len(side.ranks) for side in sides)
        self._began_as = -1
        self._left: Callable[[Sequence[int]], None] | None = None

    def follow(self, rank: int, left: Callable[[Sequence[int]], None]) -> None:
        """Tell `left`, as a world of fewer ranks opens after an error, which of the run's these are.

        Args:
            rank: this process, as the run began.
            left: called with the others too.
        """
        self._began_as, self._left = rank, left

    def go_on(self, sides: Sequence[Side], domains: Sequence[Sequence[Side]]) -> None:
        """Hear what the sides of the world are now; one of which nobody is left has no ranks."""
        self._sides, self._domains = list(sides), domains

    def rank(self, rank: int) -> AbstractContextManager[None]:
        return self._of_rank(rank).rank(rank)

    def opening(self, group: Group, *, is_world: bool) -> None:
        if is_world and self._left is not None and group.size < self._size:
            self._left(group.share("emulated/ranks", self._began_as))
        found = self._sides_of(group.ranks)
        for side in found:
            limits = self._named(side.target).target.limits
            if is_world:
                [domain] = [domain for domain in self._domains if side.target in [each.target for each in domain]]
                said = limits.world_refusal(sum(len(each.ranks) for each in domain))
            else:
                start = next(each for each in self._sides if each.target == side.target).ranks[0]
                said = limits.group_refusal([group.ranks[place] - start for place in side.ranks])
            if said:
                raise UnsupportedError(self._told(group, found, "the world" if is_world else "the group", side, said))
        self._own(group).count(group)

    def closed(self, group: Group) -> None:
        self._own(group).closed(group)

    def called(self, call: Called) -> None:
        found = self._sides_of(call.group.ranks)
        if len(found) == 1:
            self._own(call.group).called(call)
            return
        refused = ""
        for side in found:
            if said := self._named(side.target).unmovable(call):
                refused = self._told(call.group, found, call.verb, side, said)
                break
        self._own(call.group).called_across(call, refused)

    def ended(self, ended: Ended) -> None:
        self._own(ended.call.group).ended(ended)

    def _told(self, group: Group, sides: Sequence[Side], what: str, who: Side, said: str) -> str:
        """Return that one side refuses something, naming all."""
        names = [f"{self._named(side.target).target} ({_ranks(group, side)})" for side in sides]
        between = f" over {' and '.join(names)}" if len(sides) > 1 else ""
        return f"{group}: {what}{between}: {self._named(who.target).target} refuses it: {said}"

    def _named(self, target: str) -> Emulation:
        return next(each for each in self.by_side if each.target.name == target)

    def _of_rank(self, rank: int) -> Emulation:
        return next(each for each, side in zip(self.by_side, self._sides, strict=True) if rank in side.ranks)

    def _own(self, group: Group) -> Emulation:
        return self._of_rank(group.ranks[group.rank])


def _ranks(group: Group, side: Side) -> str:
    ranks = [group.ranks[place] for place in side.ranks]
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{' ...' if len(ranks) > 8 else ''}"
