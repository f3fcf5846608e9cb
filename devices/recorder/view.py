"""How `devices flight` looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from devices import _terminal
from devices.recorder.reading import Flown, Row, behind, has_forgotten, ranks_in_words, side_by_side
from devices.recorder.record import FlightRecord

_COLUMNS = 8
"""So many ranks have a column each; of more, each row says in words what they did."""


def show(found: Sequence[Flown], last: int, file: TextIO) -> bool:
    """Print the last calls of all ranks, and return whether nothing is wrong with any.

    Args:
        found: what the ranks left.
        last: how many rows to print.
        file: where to.
    """
    rows = side_by_side(found)
    wrong = _wrong(found, rows)
    _terminal.show(_sections(found, rows, last, wrong), file)
    return not wrong


def _sections(
    found: Sequence[Flown], rows: Sequence[Row], last: int, wrong: Sequence[str]
) -> Iterator[tuple[str, RenderableType]]:
    shown = rows[-last:]
    title = f"Calls of {len(found)} of {found[0].size} ranks"
    if not rows:
        yield title, Text("none")
    else:
        yield (
            title if len(shown) == len(rows) else f"{title}, the last {len(shown)} of {len(rows)}",
            _table(found, shown),
        )
    if wrong:
        yield "What is wrong", Group(*(Text(line, style="red") for line in wrong))


def _wrong(found: Sequence[Flown], rows: Sequence[Row]) -> list[str]:
    here = {flown.rank for flown in found}
    missing = [rank for rank in range(found[0].size) if rank not in here]
    said = [f"{ranks_in_words(missing)} of {found[0].size} left no file"] if missing else []
    if any(flown.why == "exit" for flown in found):
        said += [
            f"rank {flown.rank} was killed, or runs still: its file was last written while it ran"
            for flown in found
            if flown.why != "exit"
        ]
    said += behind(found, rows)
    said += [words for row in rows if (words := row.difference())]
    for row in rows:
        for rank, record in sorted(row.by_rank.items()):
            if record.error:
                at = f" at {record.line}" if record.line else ""
                said.append(f"rank {rank}: {record.verb}{_number(row)} in group {row.group!r}{at}: {record.error}")
    return said


def _table(found: Sequence[Flown], rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for _ in range(3):
        table.add_column(overflow="fold")
    wide = len(found) <= _COLUMNS
    table.add_row("began", "call", "group", "of", *([f"rank {flown.rank}" for flown in found] if wide else ["ranks"]))
    for row in rows:
        record = row.first
        cells = [_cell(flown, row) for flown in found] if wide else [_in_words(found, row)]
        said = _clock(row.began), f"{record.verb}{_number(row)}", row.group, _what(record)
        # As text, for names may hold what would be markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in (*said, *cells)))
    return table


def _clock(seconds: float) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03}"


def _number(row: Row) -> str:
    return f" #{row.number}" if row.number else ""


def _what(record: FlightRecord) -> str:
    root = f"{'root' if record.number else 'peer'} {record.root}" if record.root >= 0 else ""
    size = f"{record.numel} {record.dtype}" if record.dtype else ""
    return " ".join(filter(None, (record.op, size, root)))


def _state(flown: Flown, row: Row) -> str:
    if flown.rank not in row.members:
        return ""
    if (record := row.by_rank.get(flown.rank)) is not None:
        return record.state
    return "forgotten" if has_forgotten(flown, row) else "not called"


def _cell(flown: Flown, row: Row) -> Text:
    state, record = _state(flown, row), row.by_rank.get(flown.rank)
    if record is None or record.seconds is None:
        return Text(state, style="red" if state in ("not called", "not finished") else "dim")
    took = f"{record.seconds * 1000:.2f} ms"
    return Text(took) if state == "done" else Text(f"{state} after {took}", style="red")


def _in_words(found: Sequence[Flown], row: Row) -> str:
    by_state: dict[str, list[int]] = {}
    for flown in found:
        if state := _state(flown, row):
            by_state.setdefault(state, []).append(flown.rank)
    if len(by_state) == 1:
        [(state, ranks)] = by_state.items()
        return f"{state} on {ranks_in_words(ranks) if len(ranks) == 1 else f'all {len(ranks)}'}"
    return "; ".join(f"{state} on {ranks_in_words(ranks)}" for state, ranks in by_state.items())
