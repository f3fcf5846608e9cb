"""What becomes of a rank's groups in a process that it forks: they are closed there, and the rank goes on with them.

The two would share connections, of which each message is for one, and the threads that serve them are the rank's.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

from devices.errors import WorldError

LEFT = (
    "this process was forked from the rank that opened the group, which keeps it; start processes by "
    "multiprocessing's 'spawn' or 'forkserver' and open a world there"
)
"""Why a group is closed in a forked process."""


class Left(Protocol):
    """What a forked process leaves to the rank."""

    def leave(self) -> object:
        """Be closed here, touch nothing that the rank has too, and return what must not be given back."""
        ...


process = 0
"""Which process this is, of those that were forked one from another: what was started in another is not waited for."""

_open: WeakSet[Left] = WeakSet()
_kept: list[object] = []


def watch(group: Left) -> None:
    """Have `group` left to this process by those that are forked from it."""
    _open.add(group)


def left_under_way(what: str) -> WorldError:
    """Return the error of waiting in a forked process for what the rank has under way."""
    return WorldError(f"{what} was waited for, but {LEFT}")


def _leave() -> None:
    global process
    process += 1
    # What would be given back is the rank's.
    _kept.extend([group.leave() for group in _open])


os.register_at_fork(after_in_child=_leave)
