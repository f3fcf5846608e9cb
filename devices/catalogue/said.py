"""What is said of a target beside its figures: its maker's claims against another, and what is assumed of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from devices.catalogue.figures import (
    Figure,
    check_keys,
    fault,
    read_date,
    read_figure,
    read_source,
    read_words,
)
from devices.errors import did_you_mean

T = TypeVar("T")

CLAIMED = ("compute", "energy_efficiency", "memory", "memory_bandwidth")
"""What may be claimed beside the figures of the entry's kind."""


@dataclass(frozen=True, slots=True)
class Claim:
    """So many times another target.

    Args:
        of: what is so many times as much: a figure of the entry, or one of `CLAIMED`.
        than: the other target.
        figure: the number of times.
    """

    of: str
    than: str
    figure: Figure

    def __str__(self) -> str:
        return f"{self.of}: {self.figure.value} times that of {self.than}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One thing that is taken for granted of hardware that nobody has yet.

    Args:
        name: what it is about.
        assumed: which of `choices`.
        choices: what might be instead.
        means: what the assumed choice says, in words.
        because: which announcement leads to it, or that there is none.
        if_wrong: what changes then.
        source: the announcement; "" if there is none.
        date: of the announcement, or until when one was looked for.
    """

    name: str
    assumed: str
    choices: tuple[str, ...]
    means: str
    because: str
    if_wrong: str
    source: str
    date: str


def read_claims(file: Path, found: object, figures: Iterable[str], sources: Mapping[str, str]) -> tuple[Claim, ...]:
    """Return the claims that an entry states: figures in "times", each `of` something and `than` another target."""
    known = sorted({*figures, *CLAIMED})

    def read(table: str, one: dict[str, Any]) -> Claim:
        for key in ("of", "than"):
            if not isinstance(one.get(key), str):
                fault(file, table, key, f"must be a text, not {one.get(key)!r}")
        of, than = one["of"], one["than"]
        if of not in known:
            fault(file, table, "of", f"no figure {of!r}{did_you_mean(of, known)}")
        rest = {key: value for key, value in one.items() if key not in ("of", "than")}
        if "value" not in rest:
            fault(file, table, "value", "is missing: a claim says how many times")
        return Claim(of, than, read_figure(file, f"{table}, {of}", rest, "times", sources))

    return _each(file, "claims", found, read, lambda claim: f"{claim.of} than {claim.than}")


def read_assumptions(file: Path, found: object, sources: Mapping[str, str]) -> tuple[Assumption, ...]:
    """Return the assumptions that an entry states."""
    words = ("name", "assumed", "means", "because", "if_wrong")

    def read(table: str, one: dict[str, Any]) -> Assumption:
        check_keys(file, table, one, (*words, "choices", "source", "date"), (*words, "choices", "date"))
        said = {key: read_words(file, table, key, one[key]) for key in words}
        choices = one["choices"]
        if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
            fault(file, table, "choices", f"must be a list of texts, not {choices!r}")
        if len(set(choices)) < max(2, len(choices)):
            fault(file, table, "choices", f"must be two or more, all different, not {choices!r}")
        if said["assumed"] not in choices:
            fault(file, table, "assumed", f"{said['assumed']!r} is not one of choices, {', '.join(choices)}")
        return Assumption(
            **said,
            choices=tuple(choices),
            source=read_source(file, table, one, sources),
            date=read_date(file, table, one["date"]),
        )

    return _each(file, "assumptions", found, read, lambda assumption: assumption.name)


def _each(
    file: Path, table: str, found: object, read: Callable[[str, dict[str, Any]], T], name: Callable[[T], str]
) -> tuple[T, ...]:
    """Return what each of an array of tables states; none of them twice."""
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        fault(file, table, "", "must be an array of tables")
    done: dict[str, T] = {}
    for one in found:
        stated = read(table, one)
        if name(stated) in done:
            fault(file, table, "", f"{name(stated)!r} is stated twice")
        done[name(stated)] = stated
    return tuple(done.values())
