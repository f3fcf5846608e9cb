"""Fabric memory: tensors that lie where the peers of this host reach them, so that a collective moves them once.

Each process has one arena, of memory that is there only where something was written. Its peers map it when a tensor in
it first takes part in a collective.
"""

from __future__ import annotations

import bisect
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch

from devices._backend import Group
from devices.errors import UnsupportedError
from devices.fabric.host.arrays import Array, split
from devices.fabric.host.layout import ARENA, ARENA_BYTES, PLACE
from devices.fabric.host.peers import Process
from devices.fabric.host.segment import Segment, find, make

_PAGE = 4096
_NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE, which Python names from 3.13 on."""


@final
class Arena:
    """This process's fabric memory."""

    def __init__(self) -> None:
        self.bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.descriptor = make("fabric memory", self.bytes)
        self._memory = mmap.mmap(self.descriptor, self.bytes, flags=mmap.MAP_SHARED | _NO_RESERVE)
        whole = np.frombuffer(self._memory, np.uint8)
        self.start = whole.ctypes.data
        self.whole = whole
        self._free = [(0, self.bytes)]
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def allocate(self, bytes: int) -> Array:
        """Return `bytes` of it, zeros, which come back when the array is gone.

        Raises:
            UnsupportedError: there is no room.
        """
        length = max(-(-bytes // _PAGE) * _PAGE, _PAGE)
        with self._lock:
            while self._returned:
                self._join(*self._returned.popleft())
            at = next((at for at, (_, room) in enumerate(self._free) if room >= length), None)
            if at is None:
                room = max((room for _, room in self._free), default=0)
                raise UnsupportedError(f"no room for {bytes} bytes in fabric memory, whose largest gap has {room}")
            offset, room = self._free[at]
            self._free[at : at + 1] = [(offset + length, room - length)] if room > length else []
        array = self.whole[offset : offset + bytes]
        # What is still in use when the process ends is left to the very end.
        weakref.finalize(array, self._give_back, offset, length, os.getpid()).atexit = False
        return array

    def _give_back(self, offset: int, length: int, owner: int) -> None:
        """Take memory back: whenever the last reference goes, so also while this very thread allocates."""
        if os.getpid() == owner:
            # Whoever has it next finds zeros, and until then it takes no memory.
            self._memory.madvise(mmap.MADV_REMOVE, offset, length)
            self._returned.append((offset, length))

    def _join(self, offset: int, length: int) -> None:
        """Add a piece to the free ones, as one with its neighbours."""
        at = bisect.bisect(self._free, (offset, 0))
        if at < len(self._free) and offset + length == self._free[at][0]:
            length += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == offset:
            before = self._free.pop(at - 1)
            offset, length, at = before[0], before[1] + length, at - 1
        self._free.insert(at, (offset, length))


_mine: Arena | None = None
_mapped: weakref.WeakValueDictionary[tuple[Process, int], Array] = weakref.WeakValueDictionary()
"""The fabric memory of peers: mapped once, and as long as an open group or an array in it needs it."""

_lock = threading.Lock()


def _forget() -> None:
    """Let a child that was forked have memory of its own: what it has now is its parent's too."""
    global _mine
    _mine = None


os.register_at_fork(after_in_child=_forget)


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in this process's fabric memory, zeros at first."""
    global _mine
    with _lock:
        if _mine is None:
            _mine = Arena()
    bytes = torch.empty(0, dtype=dtype).element_size() * torch.Size(shape).numel()
    return torch.from_numpy(_mine.allocate(bytes)).view(dtype).view(shape)


@final
class Arenas:
    """The fabric memory of the ranks of a group, as far as it takes part in their collectives.

    Args:
        segment: the group's memory, in which each rank says where its own lies.
        group: the members.
        processes: those of the members, by rank of the group.
    """

    def __init__(self, segment: Segment, group: Group, processes: Mapping[int, Process]) -> None:
        self._words = segment.words
        self._rank = group.rank
        self._controls = [segment.layout.control_word(rank) for rank in range(group.size)]
        self._processes = processes
        self._known: dict[tuple[tuple[int, ...], int, object], list[Array]] = {}
        self._held: dict[int, Array] = {}

    def place_of(self, tensor: torch.Tensor) -> int:
        """Return where in this rank's fabric memory a tensor lies, plus 1; 0 if it lies elsewhere."""
        if _mine is None or not 0 <= (offset := tensor.data_ptr() - _mine.start) < _mine.bytes:
            return 0
        control = self._controls[self._rank]
        if not self._words[control + ARENA]:
            self._words[control + ARENA_BYTES] = _mine.bytes
            self._words[control + ARENA] = _mine.descriptor + 1
        return offset + 1

    def hold_one(self, parity: int) -> bool:
        """Return whether the tensor of any rank, in the call of that parity, lies in fabric memory."""
        words = self._words
        return any(words[control + PLACE + parity] for control in self._controls)

    def parts_at(self, parity: int, like: Array) -> list[Array] | None:
        """Return this rank's part of all ranks' arrays of the call of that parity, all of the size and dtype of `like`.

        Returns:
            None if one of the arrays lies elsewhere.
        """
        words = self._words
        places = tuple(words[control + PLACE + parity] for control in self._controls)
        if 0 in places:
            return None
        key = places, like.size, like.dtype
        found = self._known.get(key)
        if found is None:
            if len(self._known) > 1000:
                self._known.clear()
            arrays = [
                self.memory_of(rank)[place - 1 : place - 1 + like.nbytes].view(like.dtype)
                for rank, place in enumerate(places)
            ]
            self._known[key] = found = [split(array, len(places))[self._rank] for array in arrays]
        return found

    def memory_of(self, rank: int) -> Array:
        """Return the fabric memory of a rank, which has said where it lies.

        Raises:
            OSError: its process is gone.
        """
        if rank == self._rank:
            assert _mine is not None
            return _mine.whole
        return self._mapping(rank)

    def _mapping(self, rank: int) -> Array:
        found = self._held.get(rank)
        if found is not None:
            return found
        control = self._controls[rank]
        key = self._processes[rank], self._words[control + ARENA] - 1
        found = _mapped.get(key)
        if found is None:
            descriptor = find(key[0].pid, key[1])
            try:
                memory = mmap.mmap(descriptor, self._words[control + ARENA_BYTES], flags=mmap.MAP_SHARED | _NO_RESERVE)
            finally:
                os.close(descriptor)
            found = _mapped[key] = np.frombuffer(memory, np.uint8)
        self._held[rank] = found
        return found

    def close(self) -> None:
        """Give back the peers' memory, also that of those who have died, once no other group needs it."""
        self._known.clear()
        self._held.clear()
