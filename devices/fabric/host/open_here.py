"""The communicators that this process has open: whoever ends for an error tells their peers why, by their memory."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Protocol
from weakref import WeakSet


class _Open(Protocol):
    def farewell(self, reason: str) -> None: ...


_open: WeakSet[_Open] = WeakSet()

# A process that is forked ends for itself alone.
os.register_at_fork(after_in_child=_open.clear)


def add(communicator: _Open) -> None:
    _open.add(communicator)
    if sys.excepthook is not _say_why:
        global _before
        _before, sys.excepthook = sys.excepthook, _say_why


def discard(communicator: _Open) -> None:
    _open.discard(communicator)
    if not _open and sys.excepthook is _say_why:
        sys.excepthook = _before


def tell(error: BaseException) -> None:
    """Tell the peers of all groups that this process ends for `error`."""
    reason = f"{type(error).__name__}: {error}"
    for each in list(_open):
        each.farewell(reason)


_before = sys.excepthook


def _say_why(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    tell(error)
    _before(kind, error, traceback)
