"""Memory of a rank's own device that its peers map, and the places in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from devices.fabric.peer.memory import DeviceMemory

FIRST = 1 << 21
"""Bytes of the first segment. One that is added is at least twice as large as the one before it."""

ALIGNED = 512


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies."""

    segment: int
    start: int
    nbytes: int


@final
class Segments:
    """Some pieces of memory, in which places are taken and given back. A segment stays until all are freed.

    Args:
        memory: where they are from.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._segments: list[torch.Tensor] = []
        # By segment, where each place that is taken begins and ends.
        self._taken: list[dict[int, int]] = []

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self._segments[number]

    def take(self, nbytes: int) -> Place:
        """Return a place for so many bytes, in a new segment where there is none in those that are here."""
        length = max(-(-nbytes // ALIGNED), 1) * ALIGNED
        for number, taken in enumerate(self._taken):
            start, size = 0, self._segments[number].numel()
            for begin, end in (*sorted(taken.items()), (size, size)):
                if begin - start >= length:
                    taken[start] = start + length
                    return Place(number, start, nbytes)
                start = end
        self.add(max(length, 2 * self._segments[-1].numel() if self._segments else FIRST))
        self._taken[-1][0] = length
        return Place(len(self._segments) - 1, 0, nbytes)

    def add(self, nbytes: int) -> None:
        """Add a segment of so many bytes."""
        self._segments.append(self._memory.allocate(nbytes))
        self._taken.append({})

    def at(self, place: Place) -> torch.Tensor:
        """Return the bytes of a place."""
        return self._segments[place.segment][place.start : place.start + place.nbytes]

    def give_back(self, place: Place) -> None:
        """Let others have a place."""
        del self._taken[place.segment][place.start]

    def free(self) -> None:
        """Give back all memory; no peer has it mapped."""
        while self._segments:
            self._memory.free(self._segments.pop())
        self._taken.clear()
