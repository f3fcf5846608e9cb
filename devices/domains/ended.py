"""Which ranks of this host have died: those left out that had closed the group before they ended, being through."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import final

from devices._backend import Group
from devices._store import Store
from devices.domains.serving import check_served

_ANSWER = 0.25
"""Seconds for which a store is given time to say whether it has a key."""

_CLOSING = 2.0
"""Seconds for which a rank that closes the group waits until the others can read it."""


@final
class Asking:
    """Asks a store that may be with a rank that is stopped, or gone, and waits for it but a moment.

    Args:
        store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asks: threading.Thread | None = None
        self._answers: dict[str, list[bool]] = {}
        self._is_lost = False

    def has(self, key: str) -> bool | None:
        """Return whether a key is set; None where the store does not say."""
        if (asked := self._ask(key)) is None:
            return None
        asks, found = asked
        asks.join(_ANSWER)
        return found[0] if found else None

    def had(self, key: str) -> bool:
        """Return whether a key was set when this was last called, and ask again if not: it waits for nothing."""
        found = any(self._answers.get(key, ()))
        if not found and (asked := self._ask(key)) is not None:
            self._answers[key] = asked[1]
        return found

    def _ask(self, key: str) -> tuple[threading.Thread, list[bool]] | None:
        """Ask on a thread; return it, and where the answer comes to be; None where nobody would answer now."""
        # Torch says on standard error, each time, that a server is gone: one that is does not come back.
        if self._is_lost or (self._asks is not None and self._asks.is_alive()):
            return None
        found: list[bool] = []

        def ask() -> None:
            try:
                found.append(self._store.torch.check([key]))
            except Exception:
                self._is_lost = True

        self._asks = asks = threading.Thread(target=ask, daemon=True)
        asks.start()
        return asks, found


@final
class Ended:
    """Says which ranks of a group have died, of those on this host.

    A rank that is through closes the group and ends while others may still be in a call that needs it no more: it says
    so before. Where nobody can be asked any more whether one did, nothing is said of it.

    Args:
        group: the members.
        dead: says which of them, by ranks of the world, have ended on this host.
        has_left: says whether a rank of the group has closed it, being through; None where the group's store is to.
    """

    def __init__(
        self, group: Group, dead: Callable[[], frozenset[int]], has_left: Callable[[int], bool] | None = None
    ) -> None:
        self._group = group
        self._store = group.store.under("closed")
        self._asking = Asking(self._store)
        self._dead = dead
        self._has_left = has_left
        self._closed: set[int] = set()

    def __call__(self) -> str:
        """Return which have died, in words; "" if none has."""
        died = [rank for rank in sorted(self._dead() - self._closed) if self._has_died(rank)]
        return f"rank{'s' if len(died) > 1 else ''} {', '.join(map(str, died))} died" if died else ""

    def _has_died(self, rank: int) -> bool:
        # It has said before it ended what it said, so that its end is looked at first.
        at = self._group.ranks.index(rank)
        closed = self._has_left(at) if self._has_left is not None else self._asking.has(str(at))
        if closed:
            self._closed.add(rank)
        return closed is False

    def close(self) -> None:
        """Say that this rank is through."""
        if self._has_left is not None:
            # The host's memory says it.
            return
        saying = threading.Thread(target=self._say, daemon=True)
        saying.start()
        saying.join(_CLOSING)

    def _say(self) -> None:
        # Whose store is gone cannot be asked whether this rank was through.
        with contextlib.suppress(Exception):
            check_served(self._store.torch)
            self._store.set(str(self._group.rank), True)
