"""The address space that thread ranks share, as a fabric: an export is the tensor itself."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from devices._backend import Group
from devices.algorithms.lines import caller
from devices.errors import CollectiveError, MismatchError, RaceError
from devices.fabric.interface import AnyOf, Condition, Fabric, Raised
from devices.testing._baton import Baton

_NOTES = 16
"""How many raises of a lane are remembered."""


@final
@dataclass(slots=True)
class _Export:
    tensor: torch.Tensor | None
    note: object
    readers: int
    look: Callable[[torch.Tensor], int] | None
    looked: int


@final
class _Memory:
    """What the ranks of one group share.

    Args:
        ranks: the world's ranks that the group has.
        line: where in the program the first of them made it.
    """

    def __init__(self, ranks: tuple[int, ...], line: str) -> None:
        self.ranks = ranks
        self.line = line
        self.lanes: list[dict[int, int]] = [{} for _ in ranks]
        self.notes: list[dict[int, deque[tuple[int, object]]]] = [{} for _ in ranks]
        self.exports: list[dict[Hashable, _Export]] = [{} for _ in ranks]
        self.is_aborted = False
        self.came: Collection[int] = ()
        self.left = 0
        # Where all run at once, two may be through with an export.
        self.lock = threading.Lock()


@final
class Memories:
    """Those of all groups of a run; of a group that all have left, only who made it remains."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[_Memory]] = {}
        self._lock = threading.Lock()

    def of(self, group: Group) -> _Memory:
        """Return the memory of `group`, to which each of its ranks comes once.

        Raises:
            MismatchError: another rank made another group of that name.
        """
        me, line = group.ranks[group.rank], caller()
        with self._lock:
            known = self._by_name.setdefault(group.name, [])
            memory = next((memory for memory in known if me not in memory.came), None)
            if memory is None:
                known.append(memory := _Memory(group.ranks, line))
            memory.came = (*memory.came, me)
        if memory.ranks != group.ranks:
            raise MismatchError(
                f"{group}: the group has ranks {list(group.ranks)} here ({line}), but another rank made it with "
                f"{list(memory.ranks)} ({memory.line}); every rank makes all groups, its own and the others', in one "
                "order"
            )
        return memory

    def leave(self, memory: _Memory) -> None:
        """Empty the memory of a group if this rank is the last to leave it."""
        with self._lock:
            memory.left += 1
            if memory.left == len(memory.ranks):
                memory.came = memory.ranks
                memory.lanes, memory.notes, memory.exports = [], [], []


@final
class ThreadFabric(Fabric):
    """A group's memory, seen from one thread rank.

    Args:
        memories: those of the run.
        baton: what ranks wait by.
        group: the members.
    """

    def __init__(self, memories: Memories, baton: Baton, group: Group) -> None:
        self.rank, self.size = group.rank, group.size
        self._memories = memories
        self._memory = memories.of(group)
        self._has_left = False
        self._baton = baton
        self._group = group

    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        if readers:
            look = None if is_part or tensor is None else _version if _is_whole(tensor) else _checksum
            looked = look(tensor) if look is not None and tensor is not None else 0
            self._memory.exports[self.rank][name] = _Export(tensor, note, readers, look, looked)

    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        export = self._memory.exports[peer][name]
        if export.look is _version:
            self._check_unchanged(peer, export)
        return export.tensor, export.note

    def close(self, peer: int, name: Hashable) -> None:
        exports = self._memory.exports[peer]
        export = exports[name]
        with self._memory.lock:
            export.readers -= 1
            is_last = not export.readers
        if is_last:
            # Once for all readers, for it takes its time.
            if export.look is _checksum:
                self._check_unchanged(peer, export)
            del exports[name]
            self._baton.wake((id(self._memory), peer, name))

    def _check_unchanged(self, peer: int, export: _Export) -> None:
        if export.look is not None and export.tensor is not None and export.look(export.tensor) != export.looked:
            at = getattr(export.note, "line", "")
            line = f", started at {at}," if at else ""
            raise RaceError(
                f"rank {self._group.ranks[peer]} changed a tensor in place that a verb{line} was still to read: "
                f"{export.note}; wait for its work first, or pass a clone"
            )

    def signal(self, lane: int, value: int, note: object = None) -> None:
        if note is not None:
            notes = self._memory.notes[self.rank]
            if lane not in notes:
                notes[lane] = deque(maxlen=_NOTES)
            notes[lane].append((value, note))
        self._memory.lanes[self.rank][lane] = value
        self._baton.wake((id(self._memory), self.rank, lane))

    def noted(self, peer: int, lane: int, value: int) -> object:
        return next((note for raised, note in self._memory.notes[peer].get(lane, ()) if raised == value), None)

    def holds(self, condition: Condition) -> bool:
        return not self.awaited(condition)

    def awaited(self, condition: Condition) -> tuple[Hashable, ...]:
        """Return what is to happen before `condition` can hold; nothing if it does."""
        memory = self._memory
        if isinstance(condition, Raised):
            lane, value = condition.lane, condition.value
            for peer in condition.peers:
                if memory.lanes[peer].get(lane, 0) < value:
                    return ((id(memory), peer, lane),)
            return ()
        if isinstance(condition, AnyOf):
            keys: list[Hashable] = []
            for each in condition.conditions:
                found = self.awaited(each)
                if not found:
                    return ()
                keys += found
            return tuple(keys)
        return ((id(memory), self.rank, condition.name),) if condition.name in memory.exports[self.rank] else ()

    def missing(self, condition: Condition) -> list[int]:
        """Return the world's ranks that `condition` waits for."""
        memory = self._memory
        match condition:
            case Raised(peers, lane, value):
                found = [peer for peer in peers if memory.lanes[peer].get(lane, 0) < value]
            case AnyOf(conditions):
                return [rank for each in conditions for rank in self.missing(each)]
            case _:
                match condition.name:
                    case ("message", int(reader), _):
                        found = [reader]
                    case _:
                        found = [peer for peer in range(self.size) if peer != self.rank]
        return [self._group.ranks[peer] for peer in found]

    def wait(self, conditions: Sequence[tuple[Fabric, Condition]], about: object) -> None:
        self._baton.wait(lambda: () if self._memory.is_aborted else awaited(conditions), about)
        if self._memory.is_aborted:
            raise CollectiveError(f"{self._group}: {about} was aborted")

    def pause(self, about: object, conditions: Sequence[tuple[Fabric, Condition]] = ()) -> None:
        self._baton.pause(about)

    def give_up(self, error: BaseException) -> None:
        """Do nothing: the first error of a rank ends the run, unless the program takes it."""

    def abort(self) -> None:
        self._memory.is_aborted = True
        self._baton.wake((id(self._memory), "abort"))

    def leave(self) -> None:
        if not self._has_left:
            self._has_left = True
            self._memories.leave(self._memory)


def awaited(conditions: Sequence[tuple[Fabric, Condition]]) -> tuple[Hashable, ...]:
    """Return what is to happen before one of `conditions` can hold; nothing if one does."""
    keys: list[Hashable] = []
    for each, condition in conditions:
        fabric = each.base
        assert isinstance(fabric, ThreadFabric)
        memory = fabric._memory
        keys.append((id(memory), "abort"))
        if not memory.is_aborted:
            if not (found := fabric.awaited(condition)):
                return ()
            keys += found
    return tuple(keys)


def _is_whole(tensor: torch.Tensor) -> bool:
    """Return whether torch's count of changes says something about this tensor: it is that of a whole memory."""
    return not tensor.is_inference() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _version(tensor: torch.Tensor) -> int:
    return tensor._version


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.view(torch.uint8).numpy().data) if tensor.numel() else 0
