"""Which verbs are a backend's own, and which are composed from them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, final

from devices.algorithms.verbs import Verbs
from devices.calls.groups import own_verbs
from devices.testing.conformance.calls import REDUCING
from devices.testing.conformance.check import Broken
from devices.testing.conformance.subject import Subject

_ALL = (
    "exchange",
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "all_gather",
    "gather",
    "scatter",
    "all_to_all",
    "broadcast",
    "permute",
    "barrier",
)

_MESSAGES = "messages"
"""Beside the names of verbs, that messages between two ranks are there."""


@final
@dataclass(frozen=True, slots=True)
class Own:
    """What the communicator of a group does itself.

    Args:
        verbs: that it has.
        composed: that are composed from those.
        unused: reductions that are declared and are composed all the same, for it lacks the verb: in words.
        has_messages: whether a program's messages between two ranks are carried, by it or by another in its place.
    """

    verbs: tuple[str, ...]
    composed: tuple[str, ...]
    unused: tuple[str, ...]
    has_messages: bool


def own_of(subject: Subject) -> Own | None:
    """Return which verbs are a backend's own; None if no group of more than one rank of it opens."""
    sizes = [size for size in subject.sizes if size > 1]
    if not sizes or subject.stands_in:
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = subject.on_ranks(_own, sizes[0])[0]
    except Broken:
        return None
    declared = sorted(op for op, dtypes in subject.capabilities.reductions.items() if dtypes)
    missing = [verb for verb in REDUCING if verb not in found]
    unused = tuple(f"{verb} of {', '.join(declared)}" for verb in missing) if declared else ()
    composed = [verb for verb in _ALL[1:] if verb not in found]
    return Own(tuple(verb for verb in _ALL if verb in found), tuple(composed), unused, _MESSAGES in found)


def has_messages(subject: Subject) -> bool:
    """Return whether a backend has messages between two ranks, which nothing composes."""
    if "messages" not in subject.kept:
        own = own_of(subject)
        subject.kept["messages"] = own is None or own.has_messages
    return bool(subject.kept["messages"])


def _own(world: Any) -> list[str]:
    verbs = own_verbs(None)
    # Where somebody watches, it is what is watched that has them.
    verbs = getattr(verbs, "_verbs", verbs)
    if not isinstance(verbs, Verbs):
        return []
    return sorted(verbs._own | ({_MESSAGES} if verbs._messages.is_there else frozenset()))
