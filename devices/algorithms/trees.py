"""Binomial trees: as many steps as the number of ranks has bits. For small data with a root.

Ranks are counted from the root on, so that the root is 0. Rank v has the subtree [v, v + span), where span is
its lowest set bit; its children are v + 1, v + 2, v + 4 and so on inside it.
"""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send, Step, parts


def _span(place: int, size: int) -> int:
    """Return the size of the subtree of `place`, had the tree a power of two of ranks."""
    return place & -place or 1 << (size - 1).bit_length()


def _children(place: int, size: int) -> list[int]:
    """Return the children of `place`, that of the smallest subtree first."""
    bits = _span(place, size).bit_length() - 1
    return [place + (1 << bit) for bit in range(bits) if place + (1 << bit) < size]


@lru_cache(maxsize=256)
def broadcast(size: int, root: int) -> Schedule:
    """Return the schedule that passes the root's data down the tree."""

    def program(rank: int) -> Program:
        place = (rank - root) % size
        steps: list[Step] = []
        if place:
            steps.append((Recv((place - _span(place, size) + root) % size, 0),))
        # The child with the largest subtree has the longest way to go.
        if children := _children(place, size):
            steps.append(tuple(Send((child + root) % size, 0) for child in reversed(children)))
        return tuple(steps)

    return Schedule("broadcast", size, (Chunk("output", 0),), program, root)


@lru_cache(maxsize=256)
def reduce(size: int, root: int) -> Schedule:
    """Return the schedule that combines data up the tree; only the root's tensor changes."""
    data, partial = 0, 1

    def program(rank: int) -> Program:
        place = (rank - root) % size
        children = _children(place, size)
        target = partial if place and children else data
        steps: list[Step] = [((Recv((child + root) % size, target, reduce=True)),) for child in children]
        if target == partial:
            steps[0] = (Copy(data, partial), *steps[0])
        if place:
            steps.append((Send((place - _span(place, size) + root) % size, target),))
        return tuple(steps)

    return Schedule("reduce", size, (Chunk("output", 0), Chunk("scratch", 0)), program, root)


@lru_cache(maxsize=256)
def gather(size: int, root: int) -> Schedule:
    """Return the schedule in which each rank passes on the parts of its subtree."""
    input, output, scratch = 0, size, 2 * size

    def program(rank: int) -> Program:
        place = (rank - root) % size
        target = scratch if place else output
        steps: list[Step] = [] if place else [(Copy(input + rank, output + rank),)]
        for child in _children(place, size):
            peer = (child + root) % size
            steps.append(tuple(Recv(peer, target + part) for part in _parts(child, size, root)))
        if place:
            parent = (place - _span(place, size) + root) % size
            below = (part for part in _parts(place, size, root) if part != rank)
            steps.append((Send(parent, input + rank), *(Send(parent, scratch + part) for part in below)))
        return tuple(steps)

    return Schedule("gather", size, _three_buffers(size), program, root)


@lru_cache(maxsize=256)
def scatter(size: int, root: int) -> Schedule:
    """Return the schedule in which each rank passes down the parts of its subtree."""
    input, output, scratch = 0, size, 2 * size

    def program(rank: int) -> Program:
        place = (rank - root) % size
        source = scratch if place else input
        steps: list[Step] = []
        if place:
            parent = (place - _span(place, size) + root) % size
            below = (part for part in _parts(place, size, root) if part != rank)
            steps.append((Recv(parent, output + rank), *(Recv(parent, scratch + part) for part in below)))
        else:
            steps.append((Copy(input + rank, output + rank),))
        sends = tuple(
            Send((child + root) % size, source + part)
            for child in reversed(_children(place, size))
            for part in _parts(child, size, root)
        )
        return (*steps, sends) if sends else tuple(steps)

    return Schedule("scatter", size, _three_buffers(size), program, root)


def _parts(place: int, size: int, root: int) -> list[int]:
    """Return the ranks in the subtree of `place`, itself first."""
    return [(below + root) % size for below in range(place, min(place + _span(place, size), size))]


def _three_buffers(size: int) -> tuple[Chunk, ...]:
    return parts("input", size) + parts("output", size) + parts("scratch", size)
