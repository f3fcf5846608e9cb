"""Pairwise exchange: each rank meets every other once and nothing is passed on."""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Copy, Program, Recv, Schedule, Send, parts

_AT_ONCE = 8
"""How many peers an all_to_all talks to in one step: enough to hide latency, few enough to spare buffers."""


@lru_cache(maxsize=64)
def all_to_all(size: int) -> Schedule:
    """Return the schedule in which rank r sends to r + 1, r + 2 and so on, a few at a time."""

    def program(rank: int) -> Program:
        steps = [((Copy(rank, size + rank)),)]
        return (
            *steps,
            *(
                tuple(
                    action
                    for distance in range(start, min(start + _AT_ONCE, size))
                    for action in (
                        Send((rank + distance) % size, (rank + distance) % size),
                        Recv((rank - distance) % size, size + (rank - distance) % size),
                    )
                )
                for start in range(1, size, _AT_ONCE)
            ),
        )

    return Schedule("all_to_all", size, parts("input", size) + parts("output", size), program)


@lru_cache(maxsize=64)
def reduce_scatter(size: int) -> Schedule:
    """Return the schedule in which each rank gets its part from all others in one step.

    Parts are combined from the rank's own outwards, first downwards, then upwards: operands stay in rank order.
    """

    def program(rank: int) -> Program:
        others = (*range(rank - 1, -1, -1), *range(rank + 1, size))
        sends = (Send(peer, peer) for peer in others)
        recvs = (Recv(peer, size + rank, reduce=True) for peer in others)
        return ((Copy(rank, size + rank), *sends, *recvs),)

    return Schedule("reduce_scatter", size, parts("input", size) + parts("output", size), program)


@lru_cache(maxsize=64)
def all_gather(size: int) -> Schedule:
    """Return the schedule in which each rank sends its part to all others in one step."""

    def program(rank: int) -> Program:
        others = [(rank + distance) % size for distance in range(1, size)]
        sends = (Send(peer, size + rank) for peer in others)
        return ((Copy(size + rank, rank), *sends, *(Recv(peer, peer) for peer in others)),)

    return Schedule("all_gather", size, parts("output", size) + parts("input", size), program)
