"""Ranks of several kinds in one run: how many of each, what joins them, and what is assumed of that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, final

from devices import _observing, _registry
from devices._interop import Interop, Side
from devices.catalogue import Target, load
from devices.errors import ArgumentError, did_you_mean
from devices.testing._mixed_limits import MixedLimits
from devices.testing._mixed_report import MixedReport, Traffic

ASSUME = "DEVICES_ASSUME"
"""The variable that says what is assumed: "name=choice", several with commas."""


@final
class Mixed:
    """Ranks of several targets of the catalogue, for `devices.testing.run(fn, ranks=...)`; afterwards, its report.

    The first so many ranks of the world are of the first target, the next of the second. Each has the limits of its
    own target, and a call over ranks of several those of all of them. Where a plugin knows of a fabric between them
    they are one domain; otherwise each is a domain of its own, with messages in between.

    Args:
        ranks: how many of each target.
        assume: what is assumed of hardware that nobody has, by the names in the catalogue's table of assumptions;
            what is not said is as the variable DEVICES_ASSUME has it, "name=choice,name=choice", or as the table has.

    Raises:
        TargetNotFoundError: there is no such target.
        ArgumentError: a number of ranks, an assumption or a choice that there is not.
        UnsupportedError: a domain does not have so many ranks.

    >>> import torch, devices, devices.testing
    >>> both = devices.testing.Mixed({"trainium2": 2, "h100": 2})
    >>> devices.testing.run(lambda world: devices.all_reduce(torch.tensor(world.rank)).item(), ranks=both)
    [6, 6, 6, 6]
    """

    def __init__(self, ranks: Mapping[str, int], *, assume: Mapping[str, str] | None = None) -> None:
        self.targets: list[Target] = []
        self.sides: list[Side] = []
        for name, count in ranks.items():
            target = load(name)
            if target.beside is not None:
                raise ArgumentError(
                    f"ranks={dict(ranks)!r}: {target} has chips of two kinds; say how many of each, by "
                    f"{target.of and target.of.name!r} and {target.beside.name!r}"
                )
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ArgumentError(f"ranks={dict(ranks)!r}: of {name!r} there is at least one rank, not {count!r}")
            if target.name in [side.target for side in self.sides]:
                raise ArgumentError(f"ranks={dict(ranks)!r}: {target.name!r} is named twice")
            self.sides.append(Side(target.name, tuple(range(self.size, self.size + count))))
            self.targets.append(target)
        if not self.sides:
            raise ArgumentError("ranks={}: a run needs at least one rank")
        self._first_sides = self.sides
        self.interop = _interop_of(self.sides)
        self.assumed = _assumed(self.interop, assume or {}, str(self))
        self.domains = self.domains_of(self.sides)
        self._begin()

    @property
    def size(self) -> int:
        """The number of ranks."""
        return sum(len(side.ranks) for side in self.sides)

    @property
    def is_speculative(self) -> bool:
        """Whether it is of hardware that is known from announcements alone."""
        return any(target.speculative for target in self.targets)

    @property
    def report(self) -> MixedReport:
        """What the ranks of the last run asked for, and what that is predicted to take."""
        limits = {str(target): each.report for target, each in zip(self.targets, self._limits.by_side, strict=True)}
        return self._traffic.report(str(self), limits)

    def sides_of(self, ranks: Sequence[int]) -> list[Side]:
        """Return the kinds of a group of these ranks of the world."""
        found = [
            Side(side.target, tuple(place for place, rank in enumerate(ranks) if rank in side.ranks))
            for side in self.sides
        ]
        return [side for side in found if side.ranks]

    def domains_of(self, sides: Sequence[Side]) -> list[list[Side]]:
        """Return which sides of a group reach each other natively."""
        if self.interop is None:
            return [[side] for side in sides]
        return [list(domain) for domain in self.interop.domains(sides, self.assumed)]

    def target_of(self, rank: int) -> Target:
        """Return what a rank of the world is."""
        return next(target for target, side in zip(self.targets, self.sides, strict=True) if rank in side.ranks)

    def seen(self, target: Target) -> Target:
        """Return a target with the limits that its ranks meet."""
        limits, origins = target.limits, target.origins
        if self.interop is not None and (name := self.interop.limits_of(target.name, self.assumed)) != target.name:
            # Another's software on its own chip.
            like, own = load(name), target.limits
            limits = replace(
                like.limits,
                device_type=own.device_type,
                chip=own.chip,
                lnc=own.lnc,
                nodes=own.nodes,
                chips_per_node=own.chips_per_node,
                ranks_per_chip=own.ranks_per_chip,
                memory_per_rank=own.memory_per_rank,
            )
            origins = {**like.origins, **{name: origins[name] for name in ("memory_per_rank",) if name in origins}}
        if target.kind == "chip":
            # As many of them as there are ranks, wherever they stand.
            limits = replace(limits, chips_per_node=self.size)
        return replace(target, limits=limits, origins=origins)

    def crossed(self, rank: int, sent: int) -> None:
        """Count bytes that a rank has sent to another domain."""
        self._traffic.cross(rank, sent)

    def watched(self) -> AbstractContextManager[object]:
        """Begin a run: forget the one before, and let each rank meet its limits while this lasts."""
        self._begin()
        return _observing.observe(self._limits, self._traffic)

    @contextlib.contextmanager
    def watched_by(self, rank: int) -> Iterator[None]:
        """Begin a run of which one rank is in this process."""
        with self.watched(), self._limits.rank(rank):
            self._limits.follow(rank, self._go_on)
            yield

    def _go_on(self, ranks: Sequence[int]) -> None:
        """Hear which of the ranks that a run of processes began with are left, as they are numbered now."""
        self.sides = [
            Side(side.target, tuple(place for place, rank in enumerate(ranks) if rank in side.ranks))
            for side in self._first_sides
        ]
        self.domains = self.domains_of([side for side in self.sides if side.ranks])
        self._limits.go_on(self.sides, self.domains)

    def _begin(self) -> None:
        self._limits = MixedLimits(
            [self.seen(target) for target in self.targets], self.sides, self.sides_of, self.domains
        )
        self._traffic = Traffic(self.interop, self.assumed, self.sides_of)

    def __str__(self) -> str:
        kinds = [f"{len(side.ranks)} {target}" for side, target in zip(self.sides, self.targets, strict=True)]
        return " + ".join(kinds)

    def __repr__(self) -> str:
        by = f" by {self.interop.name}" if self.interop is not None else ""
        return f"Mixed({self}{by})"


def mixed_of(ranks: object, target: str | None, assume: Mapping[str, str] | None) -> Mixed | None:
    """Return what `run` was asked for if that is ranks of several kinds: by `ranks`, or by a target that has two."""
    if isinstance(ranks, Mixed | Mapping):
        if target is not None:
            raise ArgumentError(f"target={target!r}: ranks={ranks!r} say themselves what they are")
        if isinstance(ranks, Mixed) and assume:
            raise ArgumentError(f"assume={dict(assume)!r}: give it to {ranks!r}")
        return ranks if isinstance(ranks, Mixed) else Mixed(ranks, assume=assume)
    domain = load(target) if target is not None else None
    if domain is None or domain.of is None or domain.beside is None:
        if assume:
            raise ArgumentError(f"assume={dict(assume)!r}: nothing is assumed of these ranks; name targets by ranks=")
        return None
    if not isinstance(ranks, int) or ranks < 1:
        return None
    # Half of each, unless somebody says how many.
    halves = {domain.of.name: ranks - ranks // 2, domain.beside.name: ranks // 2}
    return Mixed({name: count for name, count in halves.items() if count}, assume=assume)


def _interop_of(sides: Sequence[Side]) -> Interop | None:
    """Return the fabric that a plugin of one of these targets knows of between them."""
    targets = {side.target for side in sides}
    for name in sorted(targets & set(_registry.backends())):
        found = _registry.backend(name).interop()
        if found is not None and found.covers(targets):
            return found
    return None


def _assumed(interop: Interop | None, asked: Mapping[str, str], who: str) -> dict[str, str]:
    """Return each assumption's choice."""
    if interop is None:
        if asked:
            raise ArgumentError(f"assume={dict(asked)!r}: nothing is assumed of {who}")
        return {}
    rows = {row.name: row for row in load(interop.domain).assumptions}
    found = {name: row.assumed for name, row in rows.items()}
    for where, said in ((f"{ASSUME}={os.environ.get(ASSUME, '')}", _of_variable()), (f"assume={dict(asked)!r}", asked)):
        for name, choice in said.items():
            if name not in rows:
                hint = did_you_mean(name, rows)
                raise ArgumentError(
                    f"{where}: {interop.domain!r} has no assumption {name!r}{hint}; known are {', '.join(rows)}"
                )
            if choice not in rows[name].choices:
                choices = " or ".join(map(repr, rows[name].choices))
                raise ArgumentError(f"{where}: {name} is {choices}, not {choice!r}")
            found[name] = choice
    return found


def _of_variable() -> dict[str, Any]:
    text = os.environ.get(ASSUME, "")
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ArgumentError(f"{ASSUME}={text}: {wrong[0].strip()!r} says no choice; write name=choice")
    return {name.strip(): choice.strip() for name, _, choice in pairs}
