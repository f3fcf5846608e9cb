"""What the ranks of a group show each other by name in shared memory: a note, and a tensor where it lies.

Each rank has a board that it alone writes, but for one word of each entry and reader, by which that reader says that
it is through. A reader finds an entry by a hash of its name, reads it, and looks once more whether it is still there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from devices.errors import UnsupportedError
from devices.fabric.host import arena, notes
from devices.fabric.host.arena import Arenas
from devices.fabric.host.arrays import Array
from devices.fabric.host.layout import ENTRIES, INDEX, LINE, LONGEST, WORD
from devices.fabric.host.segment import Segment

# The words of an entry.
_SERIAL, _READERS, _TEXT, _TEXT_BYTES, _DATA, _DATA_BYTES, _CLOSED = range(7)
"""SERIAL is 0 while an entry is none, and never twice the same; from CLOSED on, each rank has one word."""

# What TEXT and DATA hold: where in the owner's fabric memory it is, plus `_ELSEWHERE`, or one of these.
_NONE, _HERE, _ELSEWHERE = range(3)

_NUMBER = 20
"""Bits of a word of the index that are the number of an entry, plus 1; the others are of the hash."""


@final
@dataclass(slots=True)
class _Shown:
    """An entry of this rank's own; `kept` is what its text and tensor lie in, beside the entry itself."""

    number: int
    serial: int
    place: int
    readers: int
    kept: tuple[torch.Tensor, ...]


@final
@dataclass(slots=True)
class Found:
    """An entry of a rank: a tensor over the memory in which it lies there."""

    rank: int
    entry: int
    serial: int
    tensor: torch.Tensor | None
    note: object


_unread: list[Boards] = []
"""Of groups that this process has left, what peers may still read."""


@final
class Boards:
    """The boards of a group, seen from one rank.

    Args:
        segment: the group's memory, whose layout has boards.
        rank: this rank.
        arenas: where tensors lie.
    """

    def __init__(self, segment: Segment, rank: int, arenas: Arenas) -> None:
        _forget_what_was_read()
        layout = segment.layout
        self._words, self._bytes = segment.words, segment.bytes
        self._rank, self._size = rank, layout.size
        self._arenas = arenas
        self._boards = [layout.board_word(each) for each in range(layout.size)]
        self._index = [layout.index_word(each) for each in range(layout.size)]
        self._entries = [layout.entry_word(each, 0) for each in range(layout.size)]
        self._entry_words = layout.entry_bytes // WORD
        self._body = layout.body_bytes(_CLOSED) // WORD
        self._room = layout.entry_bytes - self._body * WORD
        self._free = list(range(ENTRIES - 1, -1, -1))
        self._shown: dict[Hashable, _Shown] = {}
        self._order: deque[Hashable] = deque()
        self._serial = 0
        self._found: dict[tuple[int, Hashable], Found] = {}

    # This rank's own.

    def show(self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int) -> None:
        """Let peers find `tensor` and `note` until `readers` ranks have closed them; of more than all, they stay."""
        self.take_back(name)
        self._take_back_some()
        if not self._free:
            self._take_back_all()
        if not self._free:
            raise UnsupportedError(
                f"{ENTRIES} tensors and notes of this rank are still to be read by peers; no more fit"
            )
        key = notes.written(name)
        dtype = "" if tensor is None else str(tensor.dtype).removeprefix("torch.")
        text = f"{key}\n{dtype}\n{notes.written(note)}".encode()
        number = self._free.pop()
        entry = self._entries[self._rank] + number * self._entry_words
        kept = self._write(entry, text, tensor)
        self._serial += 1
        self._words[entry + _READERS] = readers
        self._words[entry + _SERIAL] = self._serial
        self._shown[name] = _Shown(number, self._serial, self._enter(key, number), readers, kept)
        self._order.append(name)

    def _write(self, entry: int, text: bytes, tensor: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Write an entry's text and data, and return the fabric memory that it needs beside its own."""
        words, kept = self._words, []
        data = None if tensor is None else _bytes_of(tensor)
        place = 0 if tensor is None else self._arenas.place_of(tensor)
        moved = 0 if data is None or place else data.size
        start = -(-len(text) // LINE) * LINE
        words[entry + _TEXT_BYTES], words[entry + _DATA_BYTES] = len(text), 0 if data is None else data.size
        if start + moved <= self._room:
            at = (entry + self._body) * WORD
            body, words[entry + _TEXT] = self._bytes[at : at + self._room], _HERE
        else:
            block = arena.empty((start + moved,), torch.uint8)
            kept.append(block)
            body, words[entry + _TEXT] = block.numpy(), self._arenas.place_of(block) - 1 + _ELSEWHERE
        body[: len(text)] = np.frombuffer(text, np.uint8)
        if data is None:
            words[entry + _DATA] = _NONE
        elif place:
            assert tensor is not None
            kept.append(tensor)
            words[entry + _DATA] = place - 1 + _ELSEWHERE
        else:
            np.copyto(body[start : start + moved], data)
            words[entry + _DATA] = _HERE
        return tuple(kept)

    def _enter(self, key: str, number: int) -> int:
        """Put an entry into the index, and return where."""
        tag, begin = _hash(key)
        words, index = self._words, self._index[self._rank]
        far = 0
        while words[index + (begin + far) % INDEX]:
            far += 1
        if far > words[self._boards[self._rank] + LONGEST]:
            words[self._boards[self._rank] + LONGEST] = far
        place = index + (begin + far) % INDEX
        words[place] = tag << _NUMBER | number + 1
        return place

    def is_read(self, name: Hashable) -> bool:
        """Return whether all readers of `name` are through with it."""
        shown = self._shown.get(name)
        if shown is None:
            return True
        if len(self._closed(self._rank, shown.number, shown.serial)) < shown.readers:
            return False
        self.take_back(name)
        return True

    def unread(self, name: Hashable) -> tuple[list[int], int]:
        """Return the other ranks that have not closed `name`, and how many are still to do so."""
        shown = self._shown.get(name)
        if shown is None:
            return [], 0
        closed = self._closed(self._rank, shown.number, shown.serial)
        late = [rank for rank in range(self._size) if rank not in closed and rank != self._rank]
        return late, shown.readers - len(closed)

    def _closed(self, owner: int, number: int, serial: int) -> list[int]:
        at = self._entries[owner] + number * self._entry_words + _CLOSED
        words = self._words
        return [rank for rank in range(self._size) if words[at + rank] == serial]

    def take_back(self, name: Hashable) -> None:
        """Show `name` no more."""
        shown = self._shown.pop(name, None)
        if shown is not None:
            self._words[shown.place] = 0
            self._words[self._entries[self._rank] + shown.number * self._entry_words + _SERIAL] = 0
            self._free.append(shown.number)

    def _take_back_some(self) -> None:
        """Take back what was read of the few that were shown longest ago."""
        for _ in range(min(len(self._order), 3)):
            name = self._order.popleft()
            if not self.is_read(name):
                self._order.append(name)

    def _take_back_all(self) -> None:
        self._order = deque(name for name in self._order if not self.is_read(name))

    def leave(self) -> None:
        """Show on what is still to be read, for as long as this process is there."""
        if not self.is_through():
            _unread.append(self)
        self._found.clear()
        self._arenas.close()

    def is_through(self) -> bool:
        """Return whether nothing of this rank's is still to be read; what stays in any case is not counted."""
        self._take_back_all()
        return all(shown.readers > self._size for shown in self._shown.values())

    # Those of all ranks.

    def find(self, rank: int, name: Hashable) -> Found | None:
        """Return what `rank` shows as `name`; None if it shows nothing, or it was closed by all who were to read it.

        Raises:
            OSError: it lies in memory of a process that is gone.
        """
        found = self._found.get((rank, name))
        if found is not None and self._words[found.entry + _SERIAL] == found.serial:
            return found
        key = notes.written(name)
        tag, begin = _hash(key)
        words, index = self._words, self._index[rank]
        for far in range(words[self._boards[rank] + LONGEST] + 1):
            word = words[index + (begin + far) % INDEX]
            if word >> _NUMBER == tag and (found := self._read(rank, (word & (1 << _NUMBER) - 1) - 1, key)) is not None:
                self._found[rank, name] = found
                return found
        return None

    def _read(self, rank: int, number: int, key: str) -> Found | None:
        """Return an entry if it is that of the name `key`."""
        words, entry = self._words, self._entries[rank] + number * self._entry_words
        serial = words[entry + _SERIAL]
        if not serial or len(self._closed(rank, number, serial)) >= words[entry + _READERS]:
            return None
        text_at, data_at, length = words[entry + _TEXT], words[entry + _DATA], words[entry + _TEXT_BYTES]
        bytes = words[entry + _DATA_BYTES]
        if words[entry + _SERIAL] != serial:
            return None
        if text_at == _HERE:
            at = (entry + self._body) * WORD
            body: Array = self._bytes[at : at + self._room]
        else:
            body = self._arenas.memory_of(rank)[text_at - _ELSEWHERE :]
        text = body[:length].tobytes()
        if words[entry + _SERIAL] != serial:
            # It was taken back meanwhile, as what nobody is to read any more may be, and is another's now.
            return None
        shown, dtype, note = text.decode().split("\n")
        if shown != key:
            return None
        tensor = None
        if data_at != _NONE:
            if data_at == _HERE:
                data = body[(start := -(-length // LINE) * LINE) : start + bytes]
            else:
                data = self._arenas.memory_of(rank)[data_at - _ELSEWHERE :][:bytes]
            tensor = torch.from_numpy(data).view(getattr(torch, dtype))
        return Found(rank, entry, serial, tensor, notes.read(note))

    def close(self, rank: int, name: Hashable) -> None:
        """Say that this rank is through with what `rank` shows as `name`."""
        found = self.find(rank, name)
        if found is None:
            raise KeyError(name)
        del self._found[rank, name]
        self._words[found.entry + _CLOSED + self._rank] = found.serial


def _hash(key: str) -> tuple[int, int]:
    """Return a hash of a name that is never 0, and where in an index the name belongs."""
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return digest >> _NUMBER or 1, digest % INDEX


def _bytes_of(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    return (tensor if tensor.dtype is torch.uint8 else tensor.view(torch.uint8)).numpy()


def _forget_what_was_read() -> None:
    _unread[:] = [boards for boards in _unread if not boards.is_through()]
