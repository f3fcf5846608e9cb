"""A target: a chip, or what is made of chips up to a cluster, with its figures, its parts and what it allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from devices.catalogue.figures import STATUSES, Figure, Provenance
from devices.catalogue.limits import Limits
from devices.catalogue.said import Assumption, Claim
from devices.errors import TargetNotFoundError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What programs may be meant for.

    Args:
        name: what the catalogue calls it.
        kind: "chip", "machine", "ultraserver", "cluster" or "domain".
        title: what its maker calls it.
        limits: what it allows programs to do.
        figures: its own figures; those of its parts are theirs.
        of: what it is made of; None for a chip.
        members: how many of those; 1 for a chip.
        origins: where each limit is from.
        beside: the chip of another maker that is in a domain beside `of`; how many are of which is not stated.
        speculative: whether it is known from announcements alone. It is then a target only for who names it.
        claims: what its maker says of it against another target.
        assumptions: what is taken for granted of a speculative one.
    """

    name: str
    kind: str
    title: str
    limits: Limits
    figures: Mapping[str, Figure]
    of: Target | None
    members: int
    origins: Mapping[str, Provenance]
    beside: Target | None = None
    speculative: bool = False
    claims: tuple[Claim, ...] = ()
    assumptions: tuple[Assumption, ...] = ()

    def __str__(self) -> str:
        lnc = "" if self.limits.lnc is None else f" at LNC {self.limits.lnc}"
        return f"{self.name}{lnc}{' (speculative)' if self.speculative else ''}"

    @property
    def status(self) -> str:
        """How sure it is as a whole: "speculative", or the status of most of its own figures; "unknown" without any."""
        if self.speculative:
            return "speculative"
        known = [figure.status for figure in self.figures.values() if figure.value is not None and figure.status]
        return max(known, key=lambda status: (known.count(status), STATUSES.index(status)), default="unknown")

    def provenance(self, field: str) -> Provenance:
        """Return where a limit is from; that of one verb, dtype or reduce op is asked for as "verbs.send"."""
        return self._found(field, self.origins, "limit")

    def figure(self, name: str) -> Figure:
        """Return a figure of its own, or of a part: "chip.memory"."""
        named = {f"{part.kind}.{key}": figure for part, _ in self._parts() for key, figure in part.figures.items()}
        return self._found(name, {**named, **self.figures}, "figure")

    def count(self, kind: str) -> int:
        """Return how many parts of a kind it has: 64 of "chip" in a Trn2 UltraServer."""
        return self._found(kind, {part.kind: count for part, count in self._parts()}, "part")

    def total(self, name: str) -> int | float | None:
        """Return the sum of a figure over all parts that have it; None where it is not known or there is none.

        Of a domain with two kinds of chips the sums over chips are not known: who builds one says how many of each.
        """
        value = self.figure(name).value
        if value is None or (self.beside is not None and name.partition(".")[0] == "chip"):
            return None
        if isinstance(value, (bool, str, tuple)):
            raise TargetNotFoundError(f"target {self.name!r} has no total of {name!r}, which is {value!r}")
        kind, _, _ = name.rpartition(".")
        return value * self.count(kind or self.kind)

    def _parts(self) -> Iterator[tuple[Target, int]]:
        part, count = self, 1
        yield part, count
        while part.of is not None:
            count *= part.members
            part = part.of
            yield part, count

    def _found(self, asked: str, known: Mapping[str, T], what: str) -> T:
        if asked not in known:
            raise TargetNotFoundError(f"target {self.name!r} has no {what} {asked!r}{did_you_mean(asked, known)}")
        return known[asked]
