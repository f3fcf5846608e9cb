"""What went wrong in one domain, told to the ranks of all others: the first to notice says it, everyone raises it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import final

from devices._backend import Group
from devices._store import Store
from devices.errors import CollectiveError, CollectiveTimeoutError, MismatchError

LOOK = 0.25
"""Seconds between two looks at whether another domain has given up, while a call is under way."""

_KINDS = {kind.__name__: kind for kind in (MismatchError, CollectiveTimeoutError)}


@final
class Alarm:
    """The errors of a group of several domains.

    Args:
        group: the members.
        domain: what this rank's domain is called.
        give_up: makes whatever waits here fail soon; called on a thread of the alarm's own.
    """

    def __init__(self, group: Group, domain: str, give_up: Callable[[], None]) -> None:
        self._group = group
        self._store: Store = group.store.under("alarm")
        self._domain = domain
        self._give_up = weakref.WeakMethod(give_up)
        self._is_closed = False
        self._busy = threading.Event()
        self.error: CollectiveError | None = None
        """What closed the group for good, once something has."""
        threading.Thread(
            target=_watch, args=(weakref.ref(self),), name=f"devices {group.name} alarm", daemon=True
        ).start()

    def __enter__(self) -> None:
        """Begin a call."""
        if self.error is not None:
            raise type(self.error)(f"{self._group}: the group is closed for good since an error: {self.error}")
        self._busy.set()

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        """End it; raise what is to be raised on every rank, if it failed."""
        self._busy.clear()
        if isinstance(error, Exception):
            failed = self._told(error)
            self.error = failed
            if (give_up := self._give_up()) is not None:
                give_up()
            raise failed from error

    def _told(self, error: Exception) -> CollectiveError:
        """Say what this rank has found, unless another did before; return the error that all raise."""
        mine = f"rank {self._group.ranks[self._group.rank]} of {self._domain}"
        try:
            if self._store.add("told", 1) == 1:
                kind = type(error).__name__
                self._store.set("error", {"kind": kind, "text": str(error), "by": mine})
                return self._raised(kind, str(error), mine)
            # Who was first has begun to say it.
            if self._store.comes("error", 2.0):
                found = self._store.get("error")
                return self._raised(found["kind"], found["text"], found["by"])
        except Exception:
            # The store was with a rank that is gone.
            return self._raised(type(error).__name__, str(error), mine)
        return self._raised(type(error).__name__, str(error), mine)

    def _raised(self, kind: str, text: str, by: str) -> CollectiveError:
        return _KINDS.get(kind, CollectiveError)(f"{self._group}, {self._domain}: {text}, as {by} found")

    def look(self) -> bool:
        """Give up what is under way if another domain has; return whether to look again."""
        if self._is_closed or self.error is not None:
            return False
        if not self._busy.is_set():
            return True
        try:
            has_failed = self._store.torch.check(["error"])
        except Exception:
            has_failed = True
        if has_failed and self._busy.is_set() and (give_up := self._give_up()) is not None:
            give_up()
            return False
        return True

    def close(self) -> None:
        """Look no more."""
        self._is_closed = True


def _watch(alarm: weakref.ref[Alarm]) -> None:
    ended = threading.Event()
    while not ended.wait(LOOK):
        found = alarm()
        if found is None or not found.look():
            return
        del found
