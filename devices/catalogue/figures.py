"""A figure: a value and its unit, who says so, when, and how sure it is. How one is written in TOML, and read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

from devices.catalogue.units import MEASURED, UNITS, is_same, read_printed
from devices.errors import CatalogueError, did_you_mean

STATUSES = ("measured", "documented", "inferred", "announced", "assumed")
"""How sure a figure is, the surest first.

Somebody ran it and published the number; the vendor's documentation or source code states it; it is arithmetic on
other figures, or read out of third parties' code and logs; the vendor says so of what is not out yet; or the press
and analysts do.
"""

Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Args:
        place: the file and the table that state it.
        names: what a ruling is about, for instance verbs; empty where `place` says it all.
        value: None if it is not known or there is none.
        unit: of the value.
        absent: "unknown" or "none" where there is no value.
        reason: why there is no value, or why this one was chosen before `others`.
        source: who states it; "" for what is unknown.
        date: of the source's text, as "2026", "2026-08" or "2026-08-21".
        status: one of `STATUSES`; None for what is unknown.
        printed: the value as the source prints it.
        note: what else to know.
        others: the values that other sources, or other readings, give.
    """

    place: str
    names: tuple[str, ...] = ()
    value: Value | None
    unit: str
    absent: str | None = None
    reason: str = ""
    source: str
    date: str
    status: str | None
    printed: str = ""
    note: str = ""
    others: tuple[Figure, ...] = ()

    def __str__(self) -> str:
        shown = f" {self.unit}" if self.unit in MEASURED else ""
        what = self.absent if self.value is None else _text(self.value) + shown
        origin = ", ".join(part for part in (self.status, self.source, self.date) if part)
        return f"{what} ({origin})" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one limit of a target is from.

    Args:
        field: the limit.
        value: what it is; None where it is not known or there is none.
        figures: those that it is or is made of.
        how: the arithmetic, where it is not a figure's own value.
    """

    field: str
    value: object
    figures: tuple[Figure, ...]
    how: str = ""

    @property
    def status(self) -> str | None:
        """The least sure of its figures' statuses, arithmetic being "inferred"; None for what is not known."""
        statuses = [figure.status for figure in self.figures]
        if self.how and self.figures:
            statuses.append("inferred")
        known = [status for status in statuses if status is not None]
        return max(known, key=STATUSES.index) if known and len(known) == len(statuses) else None

    @property
    def reason(self) -> str:
        """Why there is no value, or why this one was chosen; "" where there is nothing to say."""
        return "; ".join(dict.fromkeys(figure.reason for figure in self.figures if figure.reason))

    def __str__(self) -> str:
        lines = [f"{self.field} = {self.value}" + (f", {self.how}" if self.how else "")]
        lines += [f"    {figure.place}: {figure}" for figure in self.figures]
        return "\n".join(lines)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def fault(file: Path, table: str, key: str, what: str) -> NoReturn:
    """Raise the error that names the file, the table and the key."""
    raise CatalogueError(f"{file.name}: {f'[{table}] ' if table else ''}{f'{key}: ' if key else ''}{what}")


def check_keys(file: Path, table: str, found: Mapping[str, Any], known: Iterable[str], needed: Iterable[str]) -> None:
    """Refuse a key that nothing reads, and the lack of one that is needed."""
    known = list(known)
    for key in found:
        if key not in known:
            fault(file, table, key, f"no such key{did_you_mean(key, known)}; there are {', '.join(known)}")
    for key in needed:
        if key not in found:
            fault(file, table, key, "is missing")


_CITED = ("source", "date", "status")
_KNOWN = ("value", "unit", *_CITED, "printed", "note")
_SINCE, _UNTIL = 2000, 2100


def read_figure(
    file: Path, table: str, found: object, unit: str, sources: Mapping[str, str], names: tuple[str, ...] = ()
) -> Figure:
    """Return the figure that a table of TOML states: a value, `unknown = "why"`, or `none = "why"`."""
    if not isinstance(found, dict):
        fault(file, table, "", f"must be a table with a value, a unit, a source, a date and a status, not {found!r}")
    forms = [form for form in ("value", "unknown", "none") if form in found]
    if len(forms) != 1:
        fault(file, table, "", f"needs one of value, unknown and none, and has {' and '.join(forms) or 'neither'}")
    place = f"{file.name} [{table}]"
    if forms == ["value"]:
        return _known(file, table, found, unit, sources, names, place)
    [form] = forms
    cited = _CITED if form == "none" else ("date",)
    check_keys(file, table, found, (form, *_CITED, "note"), (form, *cited))
    if form == "unknown" and "status" in found:
        fault(file, table, "status", "what is unknown has none")
    return Figure(
        place=place,
        names=names,
        value=None,
        unit=unit,
        absent=form,
        reason=read_words(file, table, form, found[form]),
        source=read_source(file, table, found, sources),
        date=read_date(file, table, found["date"]),
        status=_status(file, table, found),
        note=read_words(file, table, "note", found["note"]) if "note" in found else "",
    )


def unstated(file: Path, table: str, unit: str) -> Figure:
    """Return the figure that a file may leave out and does: it is not known."""
    return Figure(
        place=f"{file.name} [{table}]",
        value=None,
        unit=unit,
        absent="unknown",
        reason="its file leaves it out",
        source="",
        date="",
        status=None,
    )


def _known(
    file: Path,
    table: str,
    found: dict[str, Any],
    unit: str,
    sources: Mapping[str, str],
    names: tuple[str, ...],
    place: str,
    *,
    is_other: bool = False,
) -> Figure:
    may_have = _KNOWN if is_other else (*_KNOWN, "others", "why")
    check_keys(file, table, found, may_have, ("value", "unit", *_CITED))
    if found["unit"] != unit:
        fault(file, table, "unit", f"is {found['unit']!r} and must be {unit!r}")
    is_right, what = UNITS[unit]
    if not is_right(found["value"]):
        fault(file, table, "value", f"in {unit} must be {what}, not {found['value']!r}")
    printed = found.get("printed", "")
    if printed:
        _check_printed(file, table, printed, unit, found["value"])
    others = found.get("others", [])
    if ("others" in found) != ("why" in found):
        fault(file, table, "why", "goes with others: what else is said, and why this value was chosen")
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        fault(file, table, "others", "must be an array of tables")
    value = _frozen(found["value"])
    read = tuple(
        _known(file, f"{table}.others", other, unit, sources, (), f"{file.name} [{table}.others]", is_other=True)
        for other in others
    )
    if any(other.value == value for other in read):
        fault(file, table, "others", f"repeats the chosen value {found['value']!r}")
    return Figure(
        place=place,
        names=names,
        value=value,
        unit=unit,
        reason=read_words(file, table, "why", found["why"]) if "why" in found else "",
        source=read_source(file, table, found, sources),
        date=read_date(file, table, found["date"]),
        status=_status(file, table, found),
        printed=printed,
        note=read_words(file, table, "note", found["note"]) if "note" in found else "",
        others=read,
    )


def _frozen(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value


def read_words(file: Path, table: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        fault(file, table, key, f"must be a text, not {value!r}")
    return value


def _check_printed(file: Path, table: str, printed: object, unit: str, value: object) -> None:
    read = read_printed(printed) if isinstance(printed, str) else None
    if read is None:
        fault(file, table, "printed", f"must be a number and a unit, as '96 GiB', not {printed!r}")
    if read[0] != unit or not is_same(value, read[1]):
        fault(file, table, "printed", f"{printed!r} is {float(read[1]):.15g} {read[0]}, and the value {value!r} {unit}")


def read_source(file: Path, table: str, found: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    if "source" not in found:
        return ""
    key = found["source"]
    if not isinstance(key, str) or key not in sources:
        near = did_you_mean(key, sources) if isinstance(key, str) else ""
        fault(file, table, "source", f"no source {key!r} in sources.toml{near}")
    return sources[key]


def _status(file: Path, table: str, found: Mapping[str, Any]) -> str | None:
    if "status" not in found:
        return None
    status = found["status"]
    if status not in STATUSES:
        fault(file, table, "status", f"must be one of {', '.join(STATUSES)}, not {status!r}")
    return str(status)


def read_date(file: Path, table: str, found: object) -> str:
    if isinstance(found, date) and not isinstance(found, datetime):
        text = found.isoformat()
    elif isinstance(found, str) and re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2]))?", found):
        text = found
    else:
        fault(file, table, "date", f"must be a date, or a year or a month as '2026' or '2026-08', not {found!r}")
    if not _SINCE <= int(text[:4]) < _UNTIL:
        fault(file, table, "date", f"{text} is not of this century")
    return text
