"""What every rank of a misused group must say, and whether it did."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from rank_endings import Ending, Plan, run

Words = Sequence[str | tuple[str, ...]]
"""What a text must hold: each of the words, or one of those in brackets."""

UNHEARD = "not heard of"
"""What an error says of ranks whose call it could not wait for."""

SIZE = ("shape", "size")
SPLITS = ("sizes", "counts", "splits")


@dataclass(frozen=True)
class Raises:
    """A rank must raise an error of class `kind`, or below it, whose text holds `words`.

    Args:
        kind: the name of the class; several where more than one is right.
        words: see there.
        never: a class that it must not be: of what is noticed at once, a timeout would be no answer.
    """

    kind: str | tuple[str, ...]
    words: Words = ()
    never: str = ""


@dataclass(frozen=True)
class Returns:
    """A rank must return `value`."""

    value: Any = None


@dataclass(frozen=True)
class Ends:
    """A rank ends itself, in this way."""

    how: str


Expected = Raises | Returns | Ends


@dataclass(frozen=True)
class Case:
    """One misuse.

    Args:
        body: what each rank does.
        everyone: what every rank must do,
        but: except for these.
        ranks: how many there are.
        timeout: the group's.
        stays: whether a rank that has raised stays until all are through.
        opens: whether the world is opened for the body.
        variables: of each rank's environment.
        agent: whether the ranks' store is in the process that starts them.
        lines: whether a text must hold the lines that are marked in the body.
    """

    body: Callable[..., Any]
    everyone: Expected
    but: Mapping[int, Expected] = field(default_factory=dict)
    ranks: int = 2
    timeout: float = 30.0
    stays: bool = True
    opens: bool = True
    variables: Callable[[int], Mapping[str, str | None]] = field(default=lambda rank: {})
    agent: bool = True
    lines: bool = False

    def expected(self, rank: int) -> Expected:
        return self.but.get(rank, self.everyone)


def marked(body: Callable[..., Any]) -> dict[int, str]:
    """Return "file:line" by rank, from comments `# <0, 2>` in the body's source."""
    source, first = inspect.getsourcelines(body)
    found: dict[int, str] = {}
    for number, line in enumerate(source, first):
        if mark := re.search(r"# <([\d, ]+)>", line):
            found.update(dict.fromkeys(map(int, mark[1].split(",")), f"{inspect.getfile(body)}:{number}"))
    return found


def complaints(case: Case, endings: Sequence[Ending]) -> list[str]:
    """Return what is wrong with how the ranks ended: nothing, if all did as the case says."""
    lines = sorted(set(marked(case.body).values())) if case.lines else []
    found = []
    for rank, ending in enumerate(endings):
        if said := _complaint(case.expected(rank), ending, lines):
            found.append(f"rank {rank} of {case.ranks} {said}\n  it {ending}")
    return found


def outcome(case: Case) -> list[Ending]:
    """Return how the ranks end. Where one came so late that an error does not tell of it, they try again."""
    stopped = [rank for rank in range(case.ranks) if case.expected(rank) == Ends("hung")]
    args = () if case.opens else (case.timeout,)
    plan = Plan(case.body, args, case.timeout, case.opens, case.stays, variables=case.variables)
    for _ in range(5):
        endings = run(case.ranks, plan, but=stopped, agent=case.agent)
        if not any(UNHEARD in ending.said for ending in endings):
            break
    return endings


def check(case: Case) -> None:
    """Fail unless all ranks end as the case says."""
    if found := complaints(case, outcome(case)):
        pytest.fail("\n".join(found), pytrace=False)


KNOWN_FAULTS: dict[str, str] = {}
"""Cases that fail yet, and why."""


def named(cases: Iterable[str]) -> list[Any]:
    """Return the names of cases as parameters of a test."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=KNOWN_FAULTS[name])) if name in KNOWN_FAULTS else name
        for name in cases
    ]


def _complaint(expected: Expected, ending: Ending, lines: Sequence[str]) -> str:
    if isinstance(expected, Returns):
        if ending.how != "returned":
            return f"was to return {expected.value!r}"
        return "" if ending.value == expected.value else f"was to return {expected.value!r}, not {ending.value!r}"
    if isinstance(expected, Ends):
        return "" if ending.how == expected.how else f"was to have {expected.how}"
    if ending.how == "returned":
        return "was silent"
    if ending.how != "raised":
        return "was to raise an error"
    kinds = (expected.kind,) if isinstance(expected.kind, str) else expected.kind
    if not set(kinds) & set(ending.kinds):
        return f"was to raise {' or '.join(kinds)}"
    if expected.never in ending.kinds:
        return f"was to raise no {expected.never}"
    if missing := [word for word in (*expected.words, *lines) if not _holds(ending.said, word)]:
        return f"did not say {', '.join(map(repr, missing))}"
    return ""


def _holds(text: str, word: str | tuple[str, ...]) -> bool:
    """Return whether `text` holds a word: as a whole where it begins or ends with a letter or a digit."""
    return any(
        re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text) is not None
        for each in ((word,) if isinstance(word, str) else word)
    )
