"""What went wrong in one domain, told to the ranks of all others: the first to notice says it, everyone raises it.

Whoever fails has said why before its peers can notice: before it gives up what they wait for, or closes its
connections. So what is found because of another's failure, as that its connection was closed, is never said first.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, final

from devices._backend import Group
from devices._store import Store
from devices.domains.ended import Asking, Ended
from devices.domains.serving import check_served, has_answered
from devices.errors import CollectiveError, CollectiveTimeoutError, MismatchError

LOOK = 0.25
"""Seconds between two looks at whether another domain has given up, while a call is under way."""

_AFTER = 0.2
"""Seconds for which a rank looks for what a peer said as it ended. It was said before the peer's connections closed."""

_KINDS = {kind.__name__: kind for kind in (MismatchError, CollectiveTimeoutError)}


@final
class Alarm:
    """The errors of a group of several domains.

    Args:
        group: the members.
        domain: what this rank's domain is called.
        give_up: makes whatever waits here fail soon; called on a thread of the alarm's own.
        gone: says which ranks of this host have died, where what carries a domain may not notice; nothing if none has.
    """

    def __init__(self, group: Group, domain: str, give_up: Callable[[], None], gone: Ended | None = None) -> None:
        self._group = group
        self._store: Store = group.store.under("alarm")
        self._asking = Asking(self._store)
        self._is_unanswered = False
        self._domain = domain
        self._me = f"rank {group.ranks[group.rank]} of {domain}"
        self._give_up = weakref.WeakMethod(give_up)
        self._gone = gone
        self._lost = ""
        self._is_closed = False
        self._has_left = False
        self._calls = 0
        self._lock = threading.Lock()
        self._looks = False
        self._looked = 0.0
        self.error: CollectiveError | None = None
        """What closed the group for good, once something has."""

    def __enter__(self) -> None:
        """Begin a call."""
        if self.error is not None:
            raise type(self.error)(f"{self._group}: the group is closed for good since an error: {self.error}")
        with self._lock:
            self._calls += 1
        # A store that did not answer in time may be that of a host which was busy.
        self._is_unanswered = False
        if not self._looks:
            self._looks = True
            name = f"devices {self._group.name} alarm"
            threading.Thread(target=_watch, args=(weakref.ref(self),), name=name, daemon=True).start()

    def ring(self, error: BaseException) -> None:
        """End the call that is under way, for an error that this rank has found: others may wait for it in there."""
        self._told(error)
        self._give_up_all()

    def _give_up_all(self) -> None:
        if (give_up := self._give_up()) is not None:
            give_up()

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        """End it; raise what is to be raised on every rank, if it failed."""
        with self._lock:
            self._calls -= 1
        if error is None:
            return
        failed = self.error = self._told(error)
        self._give_up_all()
        # An interruption goes on here as it is, and is an error elsewhere.
        if isinstance(error, Exception):
            raise failed from error

    def _told(self, error: BaseException) -> CollectiveError:
        """Say what this rank has found, unless another did before; return the error that all raise."""
        kind, text = type(error).__name__, str(error) or type(error).__name__
        if self._lost:
            # What waited here was given up since then: that is not why.
            kind, text = CollectiveError.__name__, self._lost
        elif not isinstance(error, MismatchError) and (lost := self._soon_gone()):
            text = f"{lost}: {text}"
        told = self._first_of({"kind": kind, "text": text, "by": self._me})
        return self._raised(told["kind"], told["text"], told["by"])

    def _soon_gone(self) -> str:
        """Return which ranks of this host have died, or do in a moment: their connections break before they end."""
        deadline = time.monotonic() + LOOK
        while self._gone is not None:
            if (lost := self._gone()) or time.monotonic() > deadline:
                return lost
            time.sleep(0.01)
        return ""

    def _first_of(self, mine: dict[str, str]) -> dict[str, str]:
        """Return what the first to notice an error said of it; that is `mine` if this rank is the first."""
        told: dict[str, str] | None = self._answered(lambda store: store.first("error", mine))
        return mine if told is None else told

    def _answered(self, ask: Callable[[Store], Any]) -> Any:
        """Return what the store answers, once it does; None if who serves it has ended, or does not answer at all."""
        found: list[Any] = []

        def call() -> None:
            with contextlib.suppress(Exception):
                check_served(self._store.torch)
                # Another thread may wait at the connection that all share.
                found.append(ask(self._store.apart() or self._store))

        if not self._is_unanswered:
            asking = threading.Thread(target=call, daemon=True)
            asking.start()
            self._is_unanswered = not has_answered(asking, self._store.torch)
        return found[0] if found else None

    def leave(self, reason: str) -> None:
        """Say that this rank's program ends, and for what error; return once others can read it."""
        self._has_left = True
        if self.error is None:
            self._answered(lambda store: store.set(f"left/{self._group.rank}", reason))

    def reason_of(self, rank: int) -> str:
        """Return what a rank of the group that does not answer said as it ended, or nothing."""
        key = f"left/{rank}"
        return str(self._answered(lambda store: store.get(key) if store.comes(key, _AFTER) else "") or "")

    def _raised(self, kind: str, text: str, by: str) -> CollectiveError:
        return _KINDS.get(kind, CollectiveError)(f"{self._group}, {self._domain}: {text}, as {by} found")

    def has_rung(self) -> bool:
        """Return whether a call would raise what has closed the group for good, here or elsewhere, as last seen."""
        if self.error is not None or self._lost:
            return True
        with self._lock:
            if (now := time.monotonic()) < self._looked + LOOK:
                return False
            self._looked = now
        return self._asking.had("error")

    def look(self) -> bool:
        """Give up what is under way if another domain has; return whether to look again."""
        if self._is_closed or self.error is not None:
            return False
        if not self._calls:
            return True
        if self._gone is not None and (lost := self._gone()):
            self._lost = lost
            # Before: peers on other hosts, who do not see that it died, are to find that this rank gave up after it.
            self._first_of({"kind": CollectiveError.__name__, "text": lost, "by": self._me})
            self._give_up_all()
            return False
        # Who serves the store may have ended, whom this group does not need: who dies is noticed all the same.
        if self._asking.has("error") and self._calls:
            self._give_up_all()
            return False
        return True

    def stop(self) -> None:
        """Look no more."""
        self._is_closed = True

    def abandon(self) -> None:
        """Look no more, this rank having given the group up: it is not through."""
        self._has_left = True
        self.stop()

    def close(self) -> None:
        """Look no more, and say that this rank is through, if it is."""
        self.stop()
        if self._gone is not None and self.error is None and not self._has_left:
            self._gone.close()


def _watch(alarm: weakref.ref[Alarm]) -> None:
    ended = threading.Event()
    while not ended.wait(LOOK):
        found = alarm()
        if found is None or not found.look():
            return
        del found
