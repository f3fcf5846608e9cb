"""The address space that thread ranks share, as a fabric: an export is the tensor itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from devices._backend import Group
from devices.errors import CollectiveError, MismatchError, RaceError
from devices.fabric.interface import AnyOf, Condition, Fabric, Raised
from devices.fabric.mark import Mark, caller
from devices.testing._baton import Baton


@final
@dataclass(slots=True)
class _Export:
    tensor: torch.Tensor | None
    note: object
    readers: int
    version: int | None


@final
class _Memory:
    """What the ranks of one group share."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.lanes: list[dict[int, int]] = [{} for _ in ranks]
        self.notes: list[dict[int, object]] = [{} for _ in ranks]
        self.exports: list[dict[Hashable, _Export]] = [{} for _ in ranks]
        self.is_aborted = False


@final
class Memories:
    """Those of all groups of a run."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[_Memory, str]] = {}
        self._opened: dict[tuple[str, int], int] = {}

    def of(self, group: Group) -> _Memory:
        """Return the memory of `group`, to which each of its ranks comes once.

        Raises:
            MismatchError: another rank made another group of that name.
        """
        me = group.name, group.ranks[group.rank]
        times = self._opened[me] = self._opened.get(me, 0) + 1
        memory, line = self._found.setdefault((group.name, times), (_Memory(group.ranks), caller()))
        if memory.ranks != group.ranks:
            raise MismatchError(
                f"{group}: the group has ranks {list(group.ranks)} here ({caller()}), but another rank made it with "
                f"{list(memory.ranks)} ({line}); every rank makes all groups, its own and the others', in one order"
            )
        return memory


@final
class ThreadFabric(Fabric):
    """A group's memory, seen from one thread rank.

    Args:
        memory: the group's.
        baton: what ranks wait by.
        group: the members.
    """

    def __init__(self, memory: _Memory, baton: Baton, group: Group) -> None:
        self.rank, self.size = group.rank, group.size
        self._memory = memory
        self._baton = baton
        self._group = group

    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        self._baton.maybe_pause()
        if readers:
            # torch counts the changes of a whole memory.
            version = None if is_part else _version(tensor)
            self._memory.exports[self.rank][name] = _Export(tensor, note, readers, version)

    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        export = self._memory.exports[peer][name]
        if export.version is not None and _version(export.tensor) != export.version:
            line = f", started at {export.note.line}," if isinstance(export.note, Mark) else ""
            raise RaceError(
                f"rank {peer} of {self.size} changed a tensor in place that a verb{line} was still to read: "
                f"{export.note}; wait for its work first, or pass a clone"
            )
        return export.tensor, export.note

    def close(self, peer: int, name: Hashable) -> None:
        exports = self._memory.exports[peer]
        export = exports[name]
        export.readers -= 1
        if not export.readers:
            del exports[name]
            self._baton.wake((id(self._memory), peer, name))

    def signal(self, lane: int, value: int, note: object = None) -> None:
        if note is not None:
            self._memory.notes[self.rank][lane] = note
        self._memory.lanes[self.rank][lane] = value
        self._baton.wake((id(self._memory), self.rank, lane))

    def noted(self, peer: int, lane: int) -> object:
        return self._memory.notes[peer].get(lane)

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
        fabrics = [(fabric, condition) for fabric, condition in conditions if isinstance(fabric, ThreadFabric)]

        def look() -> tuple[Hashable, ...]:
            keys: list[Hashable] = []
            for fabric, condition in fabrics:
                found = () if fabric._memory.is_aborted else fabric.awaited(condition)
                if not found:
                    return ()
                keys += found
            return (*keys, *((id(fabric._memory), "abort") for fabric, _ in fabrics))

        self._baton.wait(look, about)
        if self._memory.is_aborted:
            raise CollectiveError(f"{self._group}: {about} was aborted")

    def pause(self, about: object) -> None:
        self._baton.pause(about)

    def abort(self) -> None:
        self._memory.is_aborted = True
        self._baton.wake((id(self._memory), "abort"))


def _version(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version
