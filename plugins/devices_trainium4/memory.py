"""The memory of an NVLink Fusion domain: what is not assumed of it is refused, though what stands in for it has it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from devices import Fabric
from devices.errors import CollectiveError, UnsupportedError


@final
@dataclass(frozen=True, slots=True)
class _Written:
    """The note of an export, and how often its owner had signalled before it.

    Args:
        note: what the reader gets.
        owner: whose export it is.
        signals: how many signals the owner had given.
    """

    note: object
    owner: FusionMemory
    signals: int

    @property
    def line(self) -> str:
        return str(getattr(self.note, "line", ""))

    def __str__(self) -> str:
        return str(self.note)


@final
class FusionMemory(Fabric):
    """One rank's view of a domain's memory.

    Args:
        base: what stands in for that memory.
        kinds: what each rank of the group is.
        maps_peers: whether a rank of one kind maps the memory of the other; if not, messages alone go between them.
        watches_signals: whether to refuse what is read before a signal of its owner has followed it.
    """

    def __init__(self, base: Fabric, kinds: Sequence[str], *, maps_peers: bool, watches_signals: bool) -> None:
        self.rank, self.size = base.rank, base.size
        self._base = base
        self._kinds = kinds
        self._maps_peers = maps_peers
        self._watches_signals = watches_signals
        self._signals = 0

    @property
    def base(self) -> Fabric:
        return self._base.base

    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        if self._watches_signals:
            note = _Written(note, self, self._signals)
        self._base.export(name, tensor, note, readers, is_part=is_part)

    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        me, other = self._kinds[self.rank], self._kinds[peer]
        if not self._maps_peers and me != other and not _is_message(name):
            raise UnsupportedError(
                f"rank {self.rank}, a {me}, does not map the memory of rank {peer} of the group, a {other}: "
                "peer_memory=messages is assumed"
            )
        tensor, note = self._base.open(peer, name)
        if isinstance(note, _Written):
            if peer != self.rank and note.owner._signals == note.signals:
                raise CollectiveError(
                    f"rank {self.rank} reads what rank {peer} of the group has written, {note}, before that rank has "
                    "signalled: coherence=none is assumed, so it may not be there"
                )
            note = note.note
        return tensor, note

    def close(self, peer: int, name: Hashable) -> None:
        self._base.close(peer, name)

    def signal(self, lane: int, value: int, note: object = None) -> None:
        # Before: who sees the signal has seen that it was given.
        self._signals += 1
        self._base.signal(lane, value, note)

    def noted(self, peer: int, lane: int, value: int) -> object:
        return self._base.noted(peer, lane, value)

    def holds(self, condition: Any) -> bool:
        return self._base.holds(condition)

    def wait(self, conditions: Sequence[tuple[Fabric, Any]], about: object) -> None:
        self._base.wait(conditions, about)

    def pause(self, about: object, conditions: Sequence[tuple[Fabric, Any]] = ()) -> None:
        self._base.pause(about, conditions)

    def give_up(self, error: BaseException) -> None:
        self._base.give_up(error)

    def abort(self) -> None:
        self._base.abort()

    def leave(self) -> None:
        self._base.leave()


def _is_message(name: Hashable) -> bool:
    return isinstance(name, tuple) and name[0] == "message"
