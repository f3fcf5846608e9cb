"""The communicators that this process has open: whoever ends for an error tells their peers why, by their memory."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import Protocol
from weakref import WeakSet


class _Open(Protocol):
    def farewell(self, reason: str) -> None: ...
    def abort(self) -> None: ...


_open: WeakSet[_Open] = WeakSet()

# A process that is forked ends for itself alone.
os.register_at_fork(after_in_child=_open.clear)

_before = sys.excepthook
_is_hooked = False
_here = threading.local()


def add(communicator: _Open) -> None:
    """Let `communicator` hear of an error that ends this process."""
    global _before, _is_hooked
    _open.add(communicator)
    # Once: torch sets a hook of its own on top, which calls this one.
    if not _is_hooked:
        _before, sys.excepthook, _is_hooked = sys.excepthook, _say_why, True


def discard(communicator: _Open) -> None:
    """Take back `add`."""
    _open.discard(communicator)


def unhook(hook: object) -> None:
    """Hear that whoever opened a world has set `hook` again, the one from before it."""
    global _is_hooked
    _is_hooked = hook is _say_why


def abort_all() -> None:
    """Abort all groups: what is under way there is lost."""
    for each in list(_open):
        each.abort()


def tell(error: BaseException) -> None:
    """Tell the peers of all groups that this process ends for `error`."""
    reason = f"{type(error).__name__}: {error}"
    for each in list(_open):
        each.farewell(reason)


def _say_why(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if getattr(_here, "is_saying", False):
        # A hook that was set on top of this one was taken for the one below it.
        sys.__excepthook__(kind, error, traceback)
        return
    _here.is_saying = True
    try:
        tell(error)
        _before(kind, error, traceback)
    finally:
        _here.is_saying = False
