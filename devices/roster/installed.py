"""What plugins are installed, by the metadata of distributions; none is imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points

from devices.roster.plugin import words

GROUP = "devices"
"""The entry-point group of plugins."""

OWN_DISTRIBUTION = "devices"
"""Its plugins load first, so that no other can take their names, and are trusted to be asked in this process."""


def installed() -> list[EntryPoint]:
    """Return the entry points of all plugins."""
    try:
        return list(entry_points(group=GROUP))
    except Exception:
        # Python reads those of all distributions, or none.
        return [entry for entry, _ in _one_by_one() if entry is not None and entry.group == GROUP]


def unreadable() -> tuple[str, ...]:
    """Return a sentence for each distribution whose entry points cannot be read."""
    try:
        entry_points(group=GROUP)
    except Exception:
        return tuple(said for _, said in _one_by_one() if said)
    return ()


def _one_by_one() -> Iterator[tuple[EntryPoint | None, str]]:
    """Return each entry point there is, or what is wrong with a distribution's."""
    seen: set[str] = set()
    for distribution in distributions():
        name, version = _name_and_version(distribution)
        # What is found again, on another folder of the path, is hidden by the first.
        if name in seen:
            continue
        seen.add(name)
        try:
            for entry in distribution.entry_points:
                yield entry, ""
        except Exception as error:
            said = (
                f"the entry points of {name} {version} cannot be read ({words(error)}), so no plugin of it is "
                "found, and programs that look for entry points, torch among them, may fail: install it anew, or "
                "uninstall it"
            )
            yield None, said


def allow_list() -> tuple[str, ...] | None:
    """Return the plugins that DEVICES_PLUGINS allows; None if it is not set or empty, and all are."""
    names = tuple(name.strip() for name in os.environ.get("DEVICES_PLUGINS", "").split(",") if name.strip())
    return names or None


def order(entry: EntryPoint) -> tuple[bool, tuple[str, str], str]:
    """Put our own distribution first, and the rest in an order that is the same every time."""
    distribution = distribution_of(entry)
    return distribution[0] != OWN_DISTRIBUTION, distribution, entry.name


def distribution_of(entry: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that has an entry point."""
    return _name_and_version(entry.dist)


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    name = version = ""
    # Hand-made metadata may lack either, or be no text.
    with contextlib.suppress(Exception):
        name = str((distribution and distribution.name) or "")
        version = str((distribution and distribution.version) or "")
    return name or "unnamed", version or "?"
