"""The memory that processes of a host share, by the fabric interface: for plugins whose ranks are such processes."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import final

import torch

from devices._backend import Group
from devices.errors import ArgumentError, CollectiveError
from devices.fabric.host import open_here
from devices.fabric.host.arena import Arenas
from devices.fabric.host.boards import Boards
from devices.fabric.host.layout import LANES
from devices.fabric.host.meeting import meet
from devices.fabric.host.peers import Process
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import NAP, Watch
from devices.fabric.interface import AnyOf, Condition, Fabric, Raised

_NOTES = 16
"""How many raises of a lane are remembered."""

_NOTE = "note of a raise"


def open_fabric(group: Group) -> HostFabric | str:
    """Open the memory that the processes of one host share as a `Fabric`; every rank of the group calls this.

    It may be called again for a group, and gives another fabric then.

    Returns:
        The fabric; or, the same on all ranks, why there is none, as `open_shared_memory` does.
    """
    # The group's store lives on when one of its fabrics is left.
    opening = group.store.add(f"fabric/{group.name}/{group.rank}", 1)
    met = meet(group, f"fabric/{group.name}/{opening}/", has_boards=True)
    return met if isinstance(met, str) else HostFabric(met.segment, group, met.processes)


@final
class HostFabric(Fabric):
    """A group's memory, seen from one process; `open_fabric` opens one.

    A tensor in fabric memory is read where it lies; another one is copied there, so that a change of it goes unseen.
    Names and notes are made of None, bools, numbers, strings and tuples; a note may be a `Mark` or a `Sent` too. A rank
    that leaves and then ends takes with it what is large and no peer has opened.

    Args:
        segment: the memory.
        group: the members.
        processes: those of the members, by rank of the group.
    """

    def __init__(self, segment: Segment, group: Group, processes: Mapping[int, Process]) -> None:
        self.rank, self.size = group.rank, group.size
        self._group = group
        self._words = segment.words
        self._watch = Watch(segment, group, processes)
        self._boards = Boards(segment, group.rank, Arenas(segment, group, processes))
        self._lanes = [segment.layout.board_word(rank) + LANES for rank in range(group.size)]
        self._lane_count = segment.layout.lanes
        self._notes: dict[int, list[int]] = {}
        self._looked = 0.0
        self._has_left = False
        open_here.add(self)

    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        if readers:
            self._boards.show(name, tensor, note, readers)

    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        try:
            found = self._boards.find(peer, name)
        except OSError as error:
            lost = self._watch.failure_of([peer]) or CollectiveError(
                f"{self._group}: the fabric memory of {self._watch.name(peer)} cannot be mapped: {error}"
            )
            raise self._watch.fail(lost) from error
        if found is None:
            raise KeyError(f"rank {peer} of the group has exported nothing as {name!r}")
        return found.tensor, found.note

    def close(self, peer: int, name: Hashable) -> None:
        self._boards.close(peer, name)

    def signal(self, lane: int, value: int, note: object = None) -> None:
        at = self._lane(self.rank, lane)
        if note is not None:
            kept = self._notes.setdefault(lane, [])
            kept.append(value)
            if len(kept) > _NOTES:
                self._boards.take_back((_NOTE, lane, kept.pop(0)))
            # More than there are ranks, so it stays.
            self._boards.show((_NOTE, lane, value), None, note, self.size + 1)
        self._words[at] = value

    def noted(self, peer: int, lane: int, value: int) -> object:
        found = self._boards.find(peer, (_NOTE, lane, value))
        return None if found is None else found.note

    def _lane(self, rank: int, lane: int) -> int:
        if not 0 <= lane < self._lane_count:
            raise ArgumentError(f"{self._group}: there are lanes 0 to {self._lane_count - 1}, got {lane}")
        return self._lanes[rank] + lane

    def holds(self, condition: Condition) -> bool:
        if isinstance(condition, Raised):
            words, lane, value = self._words, condition.lane, condition.value
            return all(words[self._lane(peer, lane)] >= value for peer in condition.peers)
        if isinstance(condition, AnyOf):
            return any(self.holds(each) for each in condition.conditions)
        return self._boards.is_read(condition.name)

    def wait(self, conditions: Sequence[tuple[Fabric, Condition]], about: object) -> None:
        self._watch.check()
        self._watch.until(lambda: _one_holds(conditions), lambda: self._missing(conditions), lambda: str(about))

    def pause(self, about: object, conditions: Sequence[tuple[Fabric, Condition]] = ()) -> None:
        os.sched_yield()
        time.sleep(NAP)
        if (now := time.monotonic()) - self._looked > 0.01:
            self._looked = now
            self._watch.check()
            self._watch.look(lambda: _one_holds(conditions), lambda: self._missing(conditions), lambda: str(about), 0)

    def _missing(self, conditions: Sequence[tuple[Fabric, Condition]]) -> list[int]:
        """Return the ranks that the first of `conditions` waits for."""
        fabric, condition = conditions[0] if conditions else (self, Raised((), 0, 0))
        return self._late(condition) if fabric.base is self else []

    def _late(self, condition: Condition) -> list[int]:
        if isinstance(condition, Raised):
            at = [(peer, self._lane(peer, condition.lane)) for peer in condition.peers]
            return [peer for peer, lane in at if self._words[lane] < condition.value]
        if isinstance(condition, AnyOf):
            ways = [self._late(each) for each in condition.conditions]
            # Of several that may come, the last to be lost is the one that counts.
            open_ways = [way for way in ways if not any(self._watch.are_gone([peer]) for peer in way)]
            return sorted({peer for way in open_ways or ways for peer in way})
        match condition.name:
            case ("message", int(reader), _):
                return [reader]
        unread, count = self._boards.unread(condition.name)
        # Who has left was through, if others are enough to read it.
        here = [peer for peer in unread if not self._watch.has_left(peer)]
        return here if len(here) >= count else unread

    def dead(self) -> frozenset[int]:
        """Return the ranks whose processes have ended; also after this rank has left."""
        return self._watch.dead()

    def give_up(self, error: BaseException) -> None:
        self._watch.give_up(error, "a verb")

    # The end.

    def farewell(self, reason: str) -> None:
        """Tell the peers that this rank ends for an error of its program."""
        self._watch.leave(reason)

    def abort(self) -> None:
        if self._watch.error is None and not self._has_left:
            me = self._group.ranks[self._group.rank]
            self._watch.fail(CollectiveError(f"{self._group}: rank {me} aborted the group"))

    def leave(self) -> None:
        if not self._has_left:
            self._has_left = True
            open_here.discard(self)
            self._boards.leave()
            self._watch.close()


def _one_holds(conditions: Sequence[tuple[Fabric, Condition]]) -> bool:
    return any(fabric.holds(condition) for fabric, condition in conditions)
