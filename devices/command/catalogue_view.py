"""How `devices catalogue` looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from devices import _terminal
from devices.catalogue.units import MEASURED

Row = Mapping[str, Any]

SPECULATIVE = "speculative: no such hardware is out; what is not announced is not known, and nothing detects it"


def show_list(targets: Sequence[Row], file: TextIO) -> None:
    """Print the targets, those of one kind together."""
    _terminal.show(_kinds(targets), file)


def show_target(target: Row, file: TextIO) -> None:
    """Print all that is held of one target."""
    _terminal.show(_sections(target), file)


def _kinds(targets: Sequence[Row]) -> Iterator[tuple[str, RenderableType]]:
    for kind in dict.fromkeys(target["kind"] for target in targets):
        table = _grid("cyan", "", "", "dim")
        for target in targets:
            if target["kind"] == kind:
                status = Text(target["status"], style="yellow" if target["speculative"] else "")
                table.add_row(Text(target["name"]), status, Text(target["from"]), Text(target["title"]))
        yield f"{kind}s", table


def _sections(target: Row) -> Iterator[tuple[str, RenderableType]]:
    head = _grid("cyan", "")
    for name, value in _head(target):
        head.add_row(Text(name), Text(value, style="yellow" if value == SPECULATIVE else ""))
    yield target["name"], head
    for part in dict.fromkeys(figure["target"] for figure in target["figures"]):
        yield f"Figures of {part}", _figures([each for each in target["figures"] if each["target"] == part], "figure")
    if target["claims"]:
        claims = [{**each, "claim": f"{each['of']} of {each['than']}"} for each in target["claims"]]
        yield "Claims", _figures(claims, "claim")
    if target["assumptions"]:
        yield "Assumptions", Group(*_assumptions(target["assumptions"]))
    table = _grid("cyan", "")
    for limit in target["limits"]:
        table.add_row(Text(limit["limit"]), _with_reasons(_value(limit["value"]), _reasons(limit)))
    yield "Limits of programs", table


def _head(target: Row) -> Iterator[tuple[str, str]]:
    yield "what", target["title"]
    yield "kind", target["kind"]
    yield "status", SPECULATIVE if target["speculative"] else target["status"]
    yield "from", target["from"]
    parts = [part["name"] if part["count"] is None else f"{part['count']} {part['name']}" for part in target["made_of"]]
    if target["mixed"]:
        yield "made of", f"{target['chips']} chips, {' and '.join(parts)}; how many are of which is not stated"
    elif parts:
        yield "made of", ", ".join(parts)
    if target["lnc"] is not None:
        yield "LNC", str(target["lnc"])


def _figures(figures: Sequence[Row], key: str) -> Table:
    table = _grid("cyan", "")
    for figure in figures:
        table.add_row(Text(figure[key]), _with_reasons(_stated(figure), _provenance(figure)))
    return table


def _with_reasons(value: str, reasons: Iterable[str]) -> Text:
    return Text.assemble(value, *((f"\n{reason}", "dim") for reason in reasons))


def _stated(figure: Row) -> str:
    if figure["value"] is None:
        return str(figure["absent"])
    value = _value(figure["value"]) + (f" {figure['unit']}" if figure["unit"] in MEASURED else "")
    return f"{figure['printed']} = {value}" if figure["printed"] else value


def _provenance(figure: Row) -> Iterator[str]:
    """Return who says so, when and how sure; then why, and what was not chosen."""
    origin = ", ".join(str(figure[key]) for key in ("status", "date", "source") if figure[key])
    if figure["value"] is None:
        yield f"{figure['reason']} ({origin})" if origin else str(figure["reason"])
    else:
        yield origin
    if figure["note"]:
        yield figure["note"]
    for other in figure["not_chosen"]:
        yield f"not chosen: {_stated(other)}: {'; '.join(_provenance(other))}"
    if figure["not_chosen"]:
        yield f"because {figure['reason']}"


def _reasons(limit: Row) -> Iterator[str]:
    if limit["how"]:
        yield limit["how"]
    for figure in limit["from"]:
        about = f"{', '.join(figure['names'])}: " if figure["names"] else ""
        yield f"{about}{_stated(figure)}: {'; '.join(_provenance(figure))}"


def _assumptions(assumptions: Sequence[Row]) -> Iterator[RenderableType]:
    for each in assumptions:
        table = _grid("cyan", "")
        table.add_row(Text(each["name"]), Text(f"{each['assumed']} (of {', '.join(each['choices'])})"))
        said = ", ".join(str(each[key]) for key in ("source", "date") if each[key])
        for key, text in (
            ("means", each["means"]),
            ("because", f"{each['because']} ({said})"),
            ("if wrong", each["if_wrong"]),
        ):
            table.add_row(Text(f"  {key}"), Text(text))
        yield table


def _value(value: Any) -> str:
    if value is None:
        return "unknown or none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_value(one)}" for key, one in value.items())
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


def _grid(*styles: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for style in styles:
        table.add_column(style=style, overflow="fold")
    return table
