"""Rings: each rank sends to the next alone, all links are busy all the time. For large data."""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send, parts


@lru_cache(maxsize=64)
def all_gather(size: int) -> Schedule:
    """Return the schedule that passes every rank's part round the ring, size - 1 steps."""

    def program(rank: int) -> Program:
        after, before = (rank + 1) % size, (rank - 1) % size
        own = Copy(size + rank, rank)
        steps = [
            (Send(after, (rank - step) % size), Recv(before, (rank - step - 1) % size)) for step in range(size - 1)
        ]
        return ((own, *steps[0]), *steps[1:]) if steps else ((own,),)

    return Schedule("all_gather", size, parts("output", size) + parts("input", size), program)


@lru_cache(maxsize=64)
def reduce_scatter(size: int) -> Schedule:
    """Return the schedule in which partial results go round the ring and each rank adds its own, size - 1 steps."""

    def program(rank: int) -> Program:
        after, before = (rank + 1) % size, (rank - 1) % size
        if size == 1:
            return ((Copy(0, 2),),)
        steps = []
        ready = (rank - 1) % size
        for step in range(size - 1):
            part = (rank - 2 - step) % size
            partial = (2 if part == rank else 1) * size + part
            steps.append((Copy(part, partial), Send(after, ready), Recv(before, partial, reduce=True)))
            ready = partial
        return tuple(steps)

    return Schedule(
        "reduce_scatter", size, parts("input", size) + parts("scratch", size) + parts("output", size), program
    )


@lru_cache(maxsize=64)
def all_reduce(size: int) -> Schedule:
    """Return a reduce-scatter and an all-gather round one ring, 2 (size - 1) steps."""

    def program(rank: int) -> Program:
        after, before = (rank + 1) % size, (rank - 1) % size
        reducing = [
            (Send(after, (rank - 1 - step) % size), Recv(before, (rank - 2 - step) % size, reduce=True))
            for step in range(size - 1)
        ]
        gathering = [
            (Send(after, (rank - step) % size), Recv(before, (rank - step - 1) % size)) for step in range(size - 1)
        ]
        return (*reducing, *gathering)

    return Schedule("all_reduce", size, (Chunk("output", 0),) * size, program)
