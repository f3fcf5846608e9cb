"""The dissemination barrier: in step k each rank tells the one 2^k on that it, and all it heard of, are there."""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Chunk, Program, Recv, Schedule, Send


@lru_cache(maxsize=64)
def barrier(size: int) -> Schedule:
    """Return the schedule; what it sends is of no meaning, but must not be empty."""

    def program(rank: int) -> Program:
        distances = [1 << bit for bit in range((size - 1).bit_length())]
        return tuple((Send((rank + distance) % size, 0), Recv((rank - distance) % size, 1)) for distance in distances)

    return Schedule("barrier", size, (Chunk("input", 0), Chunk("output", 0)), program)
