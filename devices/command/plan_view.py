"""How the answer of `devices plan` looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rich.table import Table
from rich.text import Text

from devices import _terminal
from devices.topology.estimate import Interval, duration
from devices.topology.planning import Choice, Choices
from devices.topology.training import Run


def show(found: Choices, file: TextIO) -> None:
    """Print the choices as a table, and what could not be said."""
    sections = []
    if found.found:
        sections.append(("Choices", _table(found.found)))
    said = [Text(f"{which}: {why}", style="red") for which, why in found.refused.items()]
    runs = [choice.run for choice in found.found]
    missing = dict.fromkeys(what for one in runs for what in one.missing)
    said += [Text(f"not known: {what}") for what in missing]
    if any(one.speculative for one in runs):
        said.append(Text("SPECULATIVE: rests on what is announced or assumed of hardware", style="yellow"))
    doubts = dict.fromkeys(doubt for one in runs for doubt in one.doubts)
    said += [Text(f"not sure: {doubt}", style="dim") for doubt in doubts]
    grid = Table.grid()
    grid.add_column(overflow="fold")
    for line in said:
        grid.add_row(line)
    if said:
        sections.append(("Beside that", grid))
    _terminal.show(iter(sections), file)


def _table(found: tuple[Choice, ...]) -> Table:
    table = Table.grid(padding=(0, 2))
    heads = ("target", "mesh", "batch", "a step", "tokens/s", "GB a rank", "J/M tokens", "$/M tokens", "")
    for place in range(len(heads)):
        table.add_column(overflow="fold", style="cyan" if not place else "")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for choice in found:
        one = choice.run
        fit = "" if one.fits else ", does not fit"
        table.add_row(
            Text(one.target + (" SPECULATIVE" if one.speculative else "")),
            Text(_axes(one)),
            Text(str(one.batch)),
            _spread(one.seconds, duration),
            _tokens(choice),
            Text(f"{one.memory / 1e9:.3g} of {one.capacity / 1e9:.3g}{fit}", style="" if one.fits else "red"),
            _spread(one.joules, _count),
            _spread(one.price, lambda value: f"{value:.3g}"),
            Text(", ".join(choice.wins), style="green"),
        )
    return table


def _axes(one: Run) -> str:
    return " ".join(f"{name}={length}" for name, length in one.mesh.items() if length > 1) or "one rank"


def _tokens(choice: Choice) -> Text:
    decoded = _spread(choice.run.tokens, _count)
    if choice.prefill is None:
        return decoded
    return Text("\n").join([decoded, Text("prefill ").append(_spread(choice.prefill.tokens, _count))])


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _spread(interval: Interval | None, text: Callable[[float], str]) -> Text:
    """Return what is expected, and below it between what it lies."""
    if interval is None:
        return Text("?")
    return Text(text(interval.expected)).append(f"\n{text(interval.low)} - {text(interval.high)}", style="dim")
