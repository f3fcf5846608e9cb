"""Putting an entry and its parts together into a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from devices.catalogue.checks import check_cores, check_dtypes, check_figures, number
from devices.catalogue.figures import fault
from devices.catalogue.limits import Limits
from devices.catalogue.origins import find_origins
from devices.catalogue.reader import Entry
from devices.catalogue.targets import Target
from devices.errors import TargetNotFoundError


def assemble(parts: Sequence[Entry], software: Entry, lnc: int | None, beside: Target | None = None) -> Target:
    """Return the target that the first of `parts` states; each is made of the next, and the last is a chip.

    Args:
        parts: the entries.
        software: what answers torch on the chip.
        lnc: how many of its cores are to be one device; the chip's default if None.
        beside: the chip that shares a domain of two kinds with it.
    """
    for entry in parts[:-1]:
        if entry.figures["members"].value is None:
            what = "must have a value: nothing can be said of what is made of an unknown number of parts"
            fault(entry.file, "figures.members", "", what)
    chip = parts[-1]
    check_cores(chip)
    lnc = _lnc(chip, lnc)
    target = _target(parts[-1:], software, lnc, None)
    for place in reversed(range(len(parts) - 1)):
        target = _target(parts[place:], software, lnc, target, beside if place == 0 else None)
    return target


def _target(
    parts: Sequence[Entry], software: Entry, lnc: int | None, of: Target | None, beside: Target | None = None
) -> Target:
    entry, *others = parts
    members = [int(number(part.figures["members"])) for part in parts[:-1]]
    check_figures(entry, math.prod(members), others[0] if others else None)
    found = find_origins(parts, software, lnc)
    values: dict[str, Any] = {field.name: found[field.name].value for field in fields(Limits)}
    limits = Limits(**values)
    check_dtypes(parts[-1], software, limits)
    return Target(
        name=entry.name,
        kind=entry.kind,
        title=entry.title,
        limits=limits,
        figures=entry.figures,
        of=of,
        beside=beside,
        speculative=entry.speculative,
        claims=entry.claims,
        assumptions=entry.assumptions,
        members=members[0] if members else 1,
        origins=MappingProxyType(found),
    )


def _lnc(chip: Entry, asked: int | None) -> int | None:
    """Return how many cores are one device: what was asked for, or the default; None where a chip is one device."""
    allowed = chip.figures["lnc"]
    if not isinstance(allowed.value, tuple):
        if asked is not None:
            raise TargetNotFoundError(f"LNC {asked} was asked for, and {chip.name} has no LNC: {allowed.reason}")
        return None
    if asked is not None and asked not in allowed.value:
        listed = " and ".join(map(str, allowed.value))
        raise TargetNotFoundError(f"LNC {asked} was asked for, and {chip.name} has LNC {listed}")
    return int(number(chip.figures["default_lnc"])) if asked is None else asked
