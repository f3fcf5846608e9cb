"""Recursive doubling: in each step ranks at twice the distance exchange all they have. For small data."""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Chunk, Program, Recv, Schedule, Send, Step


@lru_cache(maxsize=64)
def all_reduce(size: int) -> Schedule:
    """Return the schedule with log2(size) exchanges of the whole data.

    Of a size that is no power of two, the first ranks are folded: neighbours become one before, and part after.
    What a rank has is always the reduction over a run of ranks, and the two operands are two such runs in rank
    order: so every rank computes the same bits.
    """
    power = 1 << (size.bit_length() - 1)
    folded = size - power

    def program(rank: int) -> Program:
        if rank < 2 * folded and rank % 2:
            return ((Send(rank - 1, 0),), (Recv(rank - 1, 0),))
        steps: list[Step] = []
        if rank < 2 * folded:
            steps.append((Recv(rank + 1, 0, reduce=True),))
        place = rank // 2 if rank < 2 * folded else rank - folded
        distance = 1
        while distance < power:
            other = place ^ distance
            peer = 2 * other if other < folded else other + folded
            steps.append((Send(peer, 0), Recv(peer, 0, reduce=True)))
            distance *= 2
        if rank < 2 * folded:
            steps.append((Send(rank + 1, 0),))
        return tuple(steps)

    return Schedule("all_reduce", size, (Chunk("output", 0),), program)
