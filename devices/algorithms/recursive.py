"""Recursive doubling and halving: partners at distances 1, 2, 4 and so on, so the steps are logarithmic.

Of a size that is no power of two, the first ranks are folded: neighbours become one before, and part after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from devices.algorithms.schedule import Chunk, Program, Recv, Schedule, Send, Step


@lru_cache(maxsize=64)
def doubling(size: int) -> Schedule:
    """Return the all_reduce with log2(size) exchanges of the whole data. For small data.

    What a rank has is always the reduction over a run of ranks, and the two operands are two such runs in rank
    order: so every rank computes the same bits.
    """

    def steps(place: int, peer: Callable[[int], int], power: int) -> list[Step]:
        return [
            (Send(peer(place ^ 1 << bit), 0), Recv(peer(place ^ 1 << bit), 0, reduce=True))
            for bit in range(power.bit_length() - 1)
        ]

    return _folded(size, 1, steps)


@lru_cache(maxsize=64)
def halving(size: int) -> Schedule:
    """Return the all_reduce that halves what each rank reduces until it is one chunk, and gathers by doubling.

    As few bytes as a ring where the size is a power of two, in 2 log2(size) steps. For data of middling size.
    """

    def steps(place: int, peer: Callable[[int], int], power: int) -> list[Step]:
        reducing: list[Step] = []
        gathering: list[Step] = []
        for bit in reversed(range(power.bit_length() - 1)):
            width = 1 << bit
            other = place ^ width
            mine = range(place & -width, (place & -width) + width)
            theirs = range(other & -width, (other & -width) + width)
            partner = peer(other)
            reducing.append(
                (*(Send(partner, chunk) for chunk in theirs), *(Recv(partner, chunk, reduce=True) for chunk in mine))
            )
            gathering.append((*(Send(partner, chunk) for chunk in mine), *(Recv(partner, chunk) for chunk in theirs)))
        return reducing + gathering[::-1]

    return _folded(size, _power(size), steps)


def _power(size: int) -> int:
    """Return the largest power of two that is not above `size`."""
    return 1 << (size.bit_length() - 1)


def _folded(size: int, chunks: int, steps: Callable[[int, Callable[[int], int], int], list[Step]]) -> Schedule:
    """Return an all_reduce out of the steps of one over a power of two of places."""
    power = _power(size)
    folded = size - power

    def peer(place: int) -> int:
        return 2 * place if place < folded else place + folded

    def program(rank: int) -> Program:
        everything = range(chunks)
        if rank >= 2 * folded:
            return tuple(steps(rank - folded, peer, power))
        if rank % 2:
            return (
                tuple(Send(rank - 1, chunk) for chunk in everything),
                tuple(Recv(rank - 1, chunk) for chunk in everything),
            )
        return (
            tuple(Recv(rank + 1, chunk, reduce=True) for chunk in everything),
            *steps(rank // 2, peer, power),
            tuple(Send(rank + 1, chunk) for chunk in everything),
        )

    return Schedule("all_reduce", size, (Chunk("output", 0),) * chunks, program)
