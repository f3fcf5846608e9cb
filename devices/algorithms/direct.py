"""Everything goes straight to where it belongs, in one step: permute, and gather and scatter of large data."""

from __future__ import annotations

from functools import lru_cache

from devices.algorithms.schedule import Action, Chunk, Copy, Program, Recv, Schedule, Send, parts


@lru_cache(maxsize=256)
def permute(size: int, pairs: tuple[tuple[int, int], ...]) -> Schedule:
    """Return the schedule that carries the input of each pair's first rank to the output of its second."""

    def program(rank: int) -> Program:
        step: list[Action] = []
        for source, target in pairs:
            if source == target == rank:
                step.append(Copy(0, 1))
            elif source == rank:
                step.append(Send(target, 0))
            elif target == rank:
                step.append(Recv(source, 1))
        return (tuple(step),) if step else ()

    return Schedule("permute", size, (Chunk("input", 0), Chunk("output", 0)), program)


@lru_cache(maxsize=256)
def gather(size: int, root: int) -> Schedule:
    """Return the schedule in which every rank sends its part to the root."""

    def program(rank: int) -> Program:
        if rank != root:
            return ((Send(root, rank),),)
        recvs = (Recv(peer, size + peer) for peer in range(size) if peer != root)
        return ((Copy(rank, size + rank), *recvs),)

    return Schedule("gather", size, parts("input", size) + parts("output", size), program, root)


@lru_cache(maxsize=256)
def scatter(size: int, root: int) -> Schedule:
    """Return the schedule in which the root sends every rank its part."""

    def program(rank: int) -> Program:
        if rank != root:
            return ((Recv(root, size + rank),),)
        sends = (Send(peer, peer) for peer in range(size) if peer != root)
        return ((Copy(rank, size + rank), *sends),)

    return Schedule("scatter", size, parts("input", size) + parts("output", size), program, root)
