"""How `devices check` looks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from devices import _terminal
from devices.testing._check import Checked
from devices.testing._report import Asked, size


def show(checked: Checked, file: TextIO) -> None:
    """Print what came of a program."""
    _terminal.show(_sections(checked), file)


def _sections(checked: Checked) -> Iterable[tuple[str, RenderableType]]:
    report = checked.report
    on = f"{checked.ranks} thread ranks" + (f", under the limits of {report.target}" if report is not None else "")
    stands_in = (
        f"; tensors in the CPU's memory stood in for those on {checked.stands_in!r}" if checked.stands_in else ""
    )
    yield "Ran", Text(f"{checked.script} on {on}{stands_in}")
    if checked.findings:
        rows = [(f"{each.path}:{each.line}", each.code, each.replacement) for each in checked.findings]
        yield f"Bound to a vendor: {len(rows)}", _rows(("line", "code", "portable"), rows)
        if any("world" in each.replacement for each in checked.findings):
            yield "There, world is", Text("what devices.init() returns; it adopts a process group that is open")
    if report is not None:
        for title, asked in (("Refused", report.refused), ("Composed", report.composed)):
            if asked:
                yield f"{title} by {report.target}: {len(asked)}", _asked(asked)
        calls = [each for each in report.asked if each.outcome == "native"]
        if calls:
            yield "Native", _asked(calls)
        if report.peak_memory:
            peak = max(report.peak_memory.values())
            of = f" of {size(report.memory)}" if report.memory is not None else ""
            yield "Most memory of a rank", Text(f"{size(peak)}{of}")
    if checked.error:
        yield "Ended by", Text(checked.error, style="red")
    verdict = Text("portable", style="green") if checked.is_portable else Text("not portable yet", style="yellow")
    yield "Verdict", Group(verdict)


def _asked(asked: Iterable[Asked]) -> Table:
    rows = [
        (each.line, " ".join(filter(None, (each.verb, each.dtype))), f"{each.calls} x, {size(each.bytes)}", each.reason)
        for each in asked
    ]
    return _rows(("line", "verb", "calls", "why"), rows)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
