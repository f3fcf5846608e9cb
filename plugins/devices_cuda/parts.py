"""What a graph is put together from, and the classes that things fall into by what each two of them share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from devices.errors import TopologyError
from devices.topology import Link, Node
from devices_cuda.machine import Gpu

Kind = TypeVar("Kind")


@dataclass(slots=True)
class Parts:
    """A graph that is not done.

    Args:
        nodes: by name.
        links: in both directions.
        notes: what could not be told, in words.
        faults: what is there and cannot be used, in words.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep what could not be told, once."""
        if text not in self.notes:
            self.notes.append(text)

    def join(self, one: str, other: str, kind: str, bandwidth: float | None = None, origin: str = "") -> None:
        """Add a link in both directions, and where its bandwidth is from."""
        status = "documented" if bandwidth is not None else ""
        link = Link(one, other, kind, bandwidth, origin=origin if bandwidth is not None else "", status=status)
        self.links += [link, link.reverse]


def classes(members: Sequence[Kind], is_one: Callable[[Kind, Kind], bool | None], what: str) -> list[tuple[Kind, ...]]:
    """Return `members` in classes: those that are joined, by `is_one` or by others between them, in one.

    Args:
        members: what is to be classed.
        is_one: whether two are in one class; None where it is not known.
        what: what those of one class share, for the error.

    Raises:
        TopologyError: two are joined by others, and `is_one` says that they are not.
    """
    of = list(range(len(members)))
    for one, other in itertools.combinations(range(len(members)), 2):
        if is_one(members[one], members[other]):
            joined = of[other]
            of = [of[one] if each == joined else each for each in of]
    for one, other in itertools.combinations(range(len(members)), 2):
        if of[one] == of[other] and is_one(members[one], members[other]) is False:
            raise TopologyError(f"{_told(members[one])} and {_told(members[other])} share {what}, and do not")
    return [tuple(member for member, each in zip(members, of, strict=True) if each == one) for one in dict.fromkeys(of)]


def _told(member: object) -> str:
    if isinstance(member, tuple):
        return str(member[0])
    return f"GPU {member.index}" if isinstance(member, Gpu) else repr(getattr(member, "name", member))
