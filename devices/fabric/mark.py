"""`Mark`: which call of which verb a rank made, to be compared with its peers' and shown when something is wrong."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import final

from devices.errors import MismatchError


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
        sizes: the elements of each rank's part, where they are not even.
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
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.size} {self.dtype}" if self.size >= 0 else self.dtype]
        parts += [f"op {self.op!r}"] if self.op else []
        parts += [f"root {self.root}"] if self.root >= 0 else []
        space, number = ("", f", call {self.number}") if self.number else (" ", "")
        return f"{self.verb}{space}({', '.join(filter(None, parts))}) in group {self.group!r}{number}"


# The first that differs is told: uneven sizes before the size, which they leave open.
_COMPARED = ("verb", "number", "dtype", "sizes", "size", "op", "root")
assert {*_COMPARED, "group", "rank", "line"} == {field.name for field in fields(Mark)}

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
                f"{_told(value)} on rank{'s' if len(ranks) > 1 else ''} {_listed(ranks)} "
                f"({', '.join(dict.fromkeys(marks[rank].line for rank in ranks[:8]))})"
                for value, ranks in sorted(by_value.items(), key=lambda item: len(item[1]))
            )
            # Here alone parts may be of unequal size, if all ranks are told the sizes.
            if field == "size" and next(iter(marks.values())).verb in ("all_gather", "gather"):
                values += "; parts of unequal size go by sizes=, the same on every rank"
            return f"the ranks' calls differ in {field}: {values}"
    return None


def _told(value: Hashable) -> str:
    if value == ():
        return "even"
    # A verb that says nothing of a size has -1.
    return "none" if value == -1 else repr(value)


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
