"""What a mutant is: the good backend with one thing wrong, and the check that is to find it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from good_backend import Arriving, FolderBackend, Mail, MailBackend

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong.

    Args:
        name: what is wrong with it.
        check: the name of the check that must find it.
        backend: the broken backend.
        ranks: "threads" or "processes".
        size: of the world that the check looks at it in, where it would do so in several.
        patience: seconds after which its ranks, if they have not come to an end, hang.
    """

    name: str
    check: str
    backend: type[MailBackend]
    ranks: str = "threads"
    size: int = 3
    patience: float = 20.0


MUTANTS: dict[str, Mutant] = {}
"""All of them, by name."""


def caught_by(check: str, *, ranks: str = "threads", size: int = 3, patience: float = 20.0) -> Callable[[T], T]:
    """Make a mutant of a communicator, of what its verbs return, or of a backend, whose name says what is wrong."""

    def register(kind: T) -> T:
        name = " ".join(re.findall(r"NaN|KiB|[A-Z](?![a-z])|[A-Z][a-z]*|[a-z]+|[0-9]+", kind.__name__)).lower()
        assert name not in MUTANTS, f"two mutants are named {name!r}"
        MUTANTS[name] = Mutant(name, check, backend_of(kind, ranks), ranks, size, patience)
        return kind

    return register


def backend_of(kind: type, ranks: str) -> type[MailBackend]:
    """Return the good backend, but for the part that `kind` is made for."""
    if issubclass(kind, MailBackend):
        return kind
    communicator = kind if issubclass(kind, Mail) else type("Broken", (Mail,), {"arriving": kind})
    assert issubclass(kind, (Mail, Arriving))
    good = FolderBackend if ranks == "processes" else MailBackend
    return type("BrokenBackend", (good,), {"communicator": communicator})
