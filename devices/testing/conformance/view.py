"""How the outcome of the conformance kit looks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from devices import _terminal
from devices.testing.conformance.check import Outcome
from devices.testing.conformance.kit import Report

_NAMED = 3
"""How many reasons of a kind a row has room for."""


def show(report: Report, file: TextIO) -> None:
    """Print what became of the checks."""
    _terminal.show(_sections(report), file)
    # Not by rich, which would break lines and indent them: what is shown can be copied and run.
    for outcome in report.failed:
        for failure in outcome.tally.failed:
            file.write(f"\n{outcome.check.name} FAILED\n{outcome.check.law}\n{failure.what.rstrip()}\n")
            if failure.program:
                file.write(f"\n{failure.program.rstrip()}\n")
    file.write("\n")
    _terminal.show([("Verdict", _verdict(report))], file)


def as_data(report: Report) -> dict[str, Any]:
    """Return a report as plain data that JSON can carry."""
    own = report.own
    return {
        "backend": report.subject.name,
        "ranks": report.subject.ranks,
        "stands_in": report.subject.stands_in,
        "sizes": list(report.subject.sizes),
        "seed": report.subject.seed,
        "proved": report.is_proved,
        "own": None if own is None else list(own.verbs),
        "composed": None if own is None else list(own.composed),
        "unused": None if own is None else list(own.unused),
        "checks": [
            {
                "name": outcome.check.name,
                "law": outcome.check.law,
                "proved": outcome.tally.proved,
                "refused": outcome.tally.refused,
                "skipped": outcome.tally.skipped,
                "failed": [{"what": each.what, "program": each.program} for each in outcome.tally.failed],
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in report.outcomes
        ],
    }


def row_of(outcome: Outcome) -> str:
    """Return one line about a check that has run, to be printed as it comes."""
    tally = outcome.tally
    said = "FAILED" if tally.failed else "proved" if tally.proved else "refused" if tally.refused else "skipped"
    return f"{said:8}{outcome.check.name} ({outcome.seconds:.1f} s)"


def _sections(report: Report) -> Iterable[tuple[str, RenderableType]]:
    subject = report.subject
    sizes = f"worlds of {subject.sizes_in_words}; seed {subject.seed}"
    ranks = f"ranks are {subject.ranks}"
    if subject.stands_in:
        ranks += " of devices.testing, over the memory that they share: they stand for the backend's own"
    yield f"Backend {subject.name!r}", Text(f"{ranks}; {sizes}")
    yield "Checks", _checks(report.outcomes)
    if (own := report.own) is not None:
        yield "Its own", Text(", ".join(own.verbs) or "none")
        yield "Composed", Text(", ".join(own.composed) or "none")
        if own.unused:
            yield "Declared, and composed for want of a verb of its own", Text("\n".join(own.unused))


def _checks(outcomes: Iterable[Outcome]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("check", "proved", "refused", "skipped", "failed", "why"):
        is_number = title not in ("check", "why")
        table.add_column(title, overflow="fold", justify="right" if is_number else "left", no_wrap=title == "check")
    for outcome in outcomes:
        tally = outcome.tally
        style = "red" if tally.failed else "green" if tally.proved else ""
        why = _few([*(f"refused: {each}" for each in tally.refused), *tally.skipped])
        counts = (tally.proved, len(tally.refused), len(tally.skipped), len(tally.failed))
        cells = [Text(str(count) if count else "") for count in counts]
        table.add_row(Text(outcome.check.name, style=style), *cells, Text(why))
    return table


def _few(reasons: Iterable[str]) -> str:
    found = list(dict.fromkeys(reasons))
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def _verdict(report: Report) -> Text:
    proved = sum(outcome.tally.proved for outcome in report.outcomes)
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    skipped = sum(1 for outcome in report.outcomes if outcome.is_proved and not outcome.tally.proved)
    looked = len(report.outcomes) - skipped
    of = f"{looked} checks, {proved} things proved, in {seconds:.0f} s"
    if skipped:
        of += f"; {skipped} skipped, or refused rightly, as the table says"
    if report.is_empty:
        return Text("nothing was looked at: all of it was skipped", style="yellow")
    if report.is_proved:
        return Text(f"proved: {of}", style="green")
    return Text(f"not proved: {len(report.failed)} of {of}", style="red")
