"""`Mark`: which call of which verb a rank made, to be compared with its peers' and shown when something is wrong."""

from __future__ import annotations

import operator
import sys
import sysconfig
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import final

from devices.errors import MismatchError

NOWHERE = "no line of the program"

# Frames of these are not the program's: ours, the standard library's and, below, those of installed packages.
_OTHERS = (f"{Path(__file__).parents[1]}/", f"{sysconfig.get_path('stdlib')}/", "<")


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """One rank's call of a verb.

    Args:
        verb: its name.
        group: the group's name.
        number: which of the group's collective calls it is; 0 for messages between two ranks.
        dtype: what the ranks must agree on: what is reduced has a dtype, what only moves is bytes.
        size: the number of elements that all ranks must agree on, -1 where they may differ.
        op: the reduce op, "" where there is none.
        root: the source or the destination, -1 where there is none.
        rank: the rank that calls, in the world.
        line: where in the program, "file:line".
    """

    verb: str
    group: str
    number: int
    dtype: str
    size: int
    op: str
    root: int
    rank: int
    line: str

    def __str__(self) -> str:
        parts = [f"{self.size} {self.dtype}" if self.size >= 0 else self.dtype]
        parts += [f"op {self.op!r}"] if self.op else []
        parts += [f"root {self.root}"] if self.root >= 0 else []
        space, number = ("", f", call {self.number}") if self.number else (" ", "")
        return f"{self.verb}{space}({', '.join(filter(None, parts))}) in group {self.group!r}{number}"


_COMPARED = tuple(field.name for field in fields(Mark) if field.name not in ("group", "rank", "line"))

_compared = operator.attrgetter(*_COMPARED)


def difference(marks: Mapping[int, Mark]) -> str | None:
    """Return, in words, in what the calls that ranks made as one collective differ; None if they do not.

    Args:
        marks: by rank.
    """
    for field in _COMPARED:
        by_value: dict[Hashable, list[int]] = {}
        for rank, mark in sorted(marks.items()):
            by_value.setdefault(getattr(mark, field), []).append(rank)
        if len(by_value) > 1:
            values = "; ".join(
                f"{value!r} on rank{'s' if len(ranks) > 1 else ''} {_listed(ranks)} ({marks[ranks[0]].line})"
                for value, ranks in sorted(by_value.items(), key=lambda item: len(item[1]))
            )
            return f"the ranks' calls differ in {field}: {values}"
    return None


def check_alike(mine: Mark, other: Mark) -> None:
    """Raise unless two ranks made the same call.

    Raises:
        MismatchError: they did not.
    """
    if _compared(mine) != _compared(other) and (found := difference({mine.rank: mine, other.rank: other})):
        raise MismatchError(f"rank {mine.rank}: {mine}: {found}")


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown


def caller() -> str:
    """Return the line of the program that led here."""
    return line_of(sys._getframe(1))


def line_of(frame: FrameType | None) -> str:
    """Return "file:line" of the innermost frame, from `frame` outwards, that is the program's."""
    while frame is not None:
        if is_of_program(name := frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return NOWHERE


def is_of_program(file: str) -> bool:
    """Return whether a file of code is the program's: neither ours, nor the standard library's, nor installed."""
    return not (file.startswith(_OTHERS) or "/site-packages/" in file)
