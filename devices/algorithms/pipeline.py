"""Pieces of data on their way through steps, several at once: one crosses while others are reduced or handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from devices._backend import Pending

DEPTH = 2
"""So many more pieces are begun before a piece is waited for."""

Piece = Iterator[Pending]
"""A piece's steps: it yields what is under way, and is resumed once that has come."""


def run(pieces: Iterable[Piece], depth: int = DEPTH) -> None:
    """Take all pieces through their steps, in an order that is the same on every rank.

    In that order the ranks of a domain call its collectives, and messages between two ranks find each other.
    """
    source = iter(pieces)
    waiting: deque[tuple[int, Piece, Pending]] = deque()
    turn = 0
    while True:
        while waiting and waiting[0][0] <= turn:
            _, piece, pending = waiting.popleft()
            pending.wait()
            _go_on(piece, turn + depth, waiting)
        if (begun := next(source, None)) is not None:
            _go_on(begun, turn + depth, waiting)
        elif not waiting:
            return
        turn += 1


def _go_on(piece: Piece, due: int, waiting: deque[tuple[int, Piece, Pending]]) -> None:
    """Take a piece to its next step, and note when what that started is to be waited for."""
    if (pending := next(piece, None)) is not None:
        waiting.append((due, piece, pending))
