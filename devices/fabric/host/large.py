"""Collectives whose data does not fit the slots: in rounds, every rank working on a part of its own.

All take flat arrays; what only moves comes as bytes. Parts lie at fixed places of a buffer, however short they are, so
that no part's data overwrites another's that a slower rank still reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from devices.fabric.host.arrays import Array, Combine, split
from devices.fabric.host.layout import BUFFER
from devices.fabric.host.rounds import Rounds

About = Callable[[], str]

BLOCK = 1 << 18
"""So many bytes at a time are reduced and then written to others, small enough to be in the cache for that."""


def all_reduce(rounds: Rounds, rank: int, array: Array, op: Combine, size: int, about: About, dst: int = -1) -> None:
    """Reduce `array` in place: in each round this rank reduces its part of a piece, and gives its part of the last.

    Args:
        rounds: this rank's.
        rank: this rank.
        array: reduced in place; with `dst`, there alone, and elsewhere left as it is.
        op: how.
        size: the number of ranks.
        about: what the call is, for errors.
        dst: the rank that alone needs the result; -1 for all.
    """
    width = array.dtype.itemsize
    part = BUFFER // size // 64 * 64 // width
    others = [peer for peer in range(size) if peer != rank]
    wants = dst in (-1, rank)
    before: list[Array] = []
    for start in range(0, array.size, part * size):
        piece = split(array[start : start + part * size], size)
        mine = rounds.following()[rank].view(array.dtype)
        for peer in others:
            np.copyto(mine[peer * part : peer * part + piece[peer].size], piece[peer])
        buffers = [buffer.view(array.dtype) for buffer in rounds.meet(about)]
        if before and wants:
            for peer in others:
                np.copyto(before[peer], buffers[peer][peer * part : peer * part + before[peer].size])
        own = piece[rank]
        if own.size:
            place = slice(rank * part, rank * part + own.size)
            # Nobody reads the next buffer before this rank says so.
            result = rounds.following()[rank].view(array.dtype)[place]
            reduce_all([own if each == rank else buffers[each][place] for each in range(size)], op, result)
            if wants:
                np.copyto(own, result)
        before = piece
    buffers = [buffer.view(array.dtype) for buffer in rounds.meet(about)]
    if wants:
        for peer in others:
            np.copyto(before[peer], buffers[peer][peer * part : peer * part + before[peer].size])


def all_reduce_in_place(rounds: Rounds, rank: int, parts: Sequence[Array], op: Combine, about: About) -> None:
    """Reduce arrays that all ranks reach, each rank one part of them where it lies, writing it to all.

    A part is read and written by its rank alone, and written to the others while it is in the cache.

    Args:
        rounds: this rank's.
        rank: this rank.
        parts: its part of each rank's array.
        op: how.
        about: what the call is, for errors.
    """
    own = parts[rank]
    for start in range(0, own.size, block := BLOCK // own.dtype.itemsize):
        places = parts if own.size <= block else [part[start : start + block] for part in parts]
        target = places[rank]
        # Ranks are added up in their order, and this one's data is where the sum goes.
        result = target if rank < 2 else rounds.following()[rank].view(own.dtype)[: target.size]
        reduce_all(places, op, result)
        for place in places:
            if place is not result:
                np.copyto(place, result)
    rounds.meet(about)


def reduce_scatter(
    rounds: Rounds, rank: int, output: Array, input: Array, op: Combine, size: int, about: About
) -> None:
    width = input.dtype.itemsize
    part = BUFFER // size // 64 * 64 // width
    rows = input.reshape(size, -1)
    for start in range(0, output.size, part):
        target = output[start : start + part]
        mine = rounds.following()[rank].view(input.dtype)
        for peer in range(size):
            if peer != rank:
                np.copyto(mine[peer * part : peer * part + target.size], rows[peer, start : start + part])
        buffers = [buffer.view(input.dtype) for buffer in rounds.meet(about)]
        place = slice(rank * part, rank * part + target.size)
        own = rows[rank, start : start + part]
        # The output may be the very memory of this rank's part of the input.
        result = target if rank < 2 else rounds.following()[rank].view(input.dtype)[place]
        reduce_all([own if each == rank else buffers[each][place] for each in range(size)], op, result)
        if rank >= 2:
            np.copyto(target, result)


def all_gather(rounds: Rounds, rank: int, output: Array | None, input: Array, size: int, about: About) -> None:
    """Fill `output`, where there is one, with all inputs."""
    rows = None if output is None else output.reshape(size, -1)
    for start in range(0, input.size, BUFFER):
        own = input[start : start + BUFFER]
        np.copyto(rounds.following()[rank][: own.size], own)
        buffers = rounds.meet(about)
        if rows is not None:
            for peer in range(size):
                source = own if peer == rank else buffers[peer][: own.size]
                np.copyto(rows[peer, start : start + BUFFER], source)


def broadcast(rounds: Rounds, rank: int, array: Array, src: int, about: About) -> None:
    for start in range(0, array.size, BUFFER):
        piece = array[start : start + BUFFER]
        if rank == src:
            np.copyto(rounds.following()[rank][: piece.size], piece)
        buffers = rounds.meet(about)
        if rank != src:
            np.copyto(piece, buffers[src][: piece.size])


def scatter(rounds: Rounds, rank: int, output: Array, input: Array | None, src: int, size: int, about: About) -> None:
    part = BUFFER // size // 64 * 64
    rows = None if input is None else input.reshape(size, -1)
    for start in range(0, output.size, part):
        target = output[start : start + part]
        if rows is not None:
            mine = rounds.following()[rank]
            for peer in range(size):
                if peer != rank:
                    np.copyto(mine[peer * part : peer * part + target.size], rows[peer, start : start + part])
        buffers = rounds.meet(about)
        source = buffers[src][rank * part : rank * part + target.size] if rows is None else rows[rank, start:][:part]
        np.copyto(target, source)


def all_to_all(
    rounds: Rounds,
    rank: int,
    output: Array,
    input: Array,
    received: Sequence[int],
    sent: Sequence[int],
    longest: int,
    about: About,
) -> None:
    """Exchange parts; `longest` is the most bytes that any rank sends to another."""
    size = len(sent)
    part = BUFFER // size // 64 * 64
    into, out = _parts(output, received), _parts(input, sent)
    np.copyto(into[rank], out[rank])
    for start in range(0, longest, part):
        mine = rounds.following()[rank]
        for peer in range(size):
            if peer != rank and (piece := out[peer][start : start + part]).size:
                np.copyto(mine[peer * part : peer * part + piece.size], piece)
        buffers = rounds.meet(about)
        for peer in range(size):
            if peer != rank and (target := into[peer][start : start + part]).size:
                np.copyto(target, buffers[peer][rank * part : rank * part + target.size])


def reduce_parts(
    rounds: Rounds, rank: int, output: Array, parts: Sequence[Sequence[Array]], op: Combine, about: About
) -> None:
    """Fill `output` with this rank's part of the reduction of all ranks' `parts`, which may be of any lengths.

    Args:
        rounds: this rank's.
        rank: this rank.
        output: in memory of its own.
        parts: by rank, arrays that make up its part one after the other; as long on every rank.
        op: how.
        about: what the call is, for errors.
    """
    size, dtype = len(parts), output.dtype
    room = BUFFER // size // 64 * 64 // dtype.itemsize
    for start in range(0, _longest(parts), room):
        mine = rounds.following()[rank].view(dtype)
        for peer in range(size):
            if peer != rank:
                for at, piece in _cut(parts[peer], start, start + room):
                    np.copyto(mine[peer * room + at :][: piece.size], piece)
        buffers = [buffer.view(dtype) for buffer in rounds.meet(about)]
        for at, own in _cut(parts[rank], start, start + room):
            place = slice(rank * room + at, rank * room + at + own.size)
            inputs = [own if each == rank else buffers[each][place] for each in range(size)]
            reduce_all(inputs, op, output[start + at :][: own.size])


def gather_parts(rounds: Rounds, rank: int, parts: Sequence[Sequence[Array]], input: Array, about: About) -> None:
    """Fill all ranks' `parts` with the inputs of those, which may be of any lengths.

    Args:
        rounds: this rank's.
        rank: this rank.
        parts: by rank, arrays that its input is to lie in one after the other; together as long as that.
        input: this rank's.
        about: what the call is, for errors.
    """
    for at, target in _cut(parts[rank], 0, input.size):
        np.copyto(target, input[at : at + target.size])
    for start in range(0, _longest(parts), BUFFER):
        own = input[start : start + BUFFER]
        np.copyto(rounds.following()[rank][: own.size], own)
        buffers = rounds.meet(about)
        for peer, into in enumerate(parts):
            if peer != rank:
                for at, target in _cut(into, start, start + BUFFER):
                    np.copyto(target, buffers[peer][at : at + target.size])


def permute(
    rounds: Rounds, rank: int, output: Array | None, input: Array | None, source: int, size: int, about: About
) -> None:
    """Fill `output`, where there is one, with the input of rank `source`; each is of `size` bytes."""
    for start in range(0, size, BUFFER):
        piece = slice(start, min(start + BUFFER, size))
        length = piece.stop - start
        if input is not None:
            np.copyto(rounds.following()[rank][:length], input[piece])
        buffers = rounds.meet(about)
        if output is not None:
            np.copyto(output[piece], buffers[source][:length])


def reduce_all(inputs: Sequence[Array], op: Combine, out: Array) -> None:
    """Write the reduction of two or more arrays, in their order, into `out`, which may be one of the first two."""
    op(inputs[0], inputs[1], out)
    for each in inputs[2:]:
        op(out, each, out)


def _parts(array: Array, counts: Sequence[int]) -> list[Array]:
    ends = np.cumsum(counts)
    return [array[end - count : end] for end, count in zip(ends.tolist(), counts, strict=True)]


def _cut(arrays: Sequence[Array], start: int, stop: int) -> Iterator[tuple[int, Array]]:
    """Return what of arrays that lie one after the other is from `start` to `stop`, and how far from `start` it is."""
    at = -start
    for array in arrays:
        if (piece := array[max(-at, 0) : max(stop - start - at, 0)]).size:
            yield max(at, 0), piece
        at += array.size


def _longest(parts: Sequence[Sequence[Array]]) -> int:
    return max(sum(array.size for array in part) for part in parts)
