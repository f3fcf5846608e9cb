"""One question for all ranks of a host: the first to come asks it, and the others read its answer in the store."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices._store import Store
from devices.roster.survey import DEADLINE, STARTING, WAITING

PATIENCE = 2 * (DEADLINE + WAITING + STARTING)
"""Seconds that a rank waits for another's answer, which comes within what a survey takes and a little more."""


def once_per_host(store: Store, key: str, ask: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Return what `ask` returns, called on one rank of each host; it must be JSON.

    Nobody depends on another's life: whoever gets no answer in time, or has lost the store, asks for itself.

    Args:
        store: that of the ranks.
        key: what the question is.
        ask: answers it.
        patience: how long to wait for another rank's answer.
    """
    asked, answer = (f"devices/probe/{_host()}/{key}/{end}" for end in ("asked", "answer"))
    is_mine = True
    # Each kind of store has its own errors. One that is gone, as where rank 0 held it and has left with an error, must
    # not hide that error here.
    with contextlib.suppress(Exception):
        is_mine = store.add(asked, 1) == 1
        if not is_mine and store.comes(answer, patience):
            return store.get(answer)
    found = ask()
    if is_mine:
        with contextlib.suppress(Exception):
            store.set(answer, found)
    return found


def _host() -> str:
    """Return a name of what this process sees as its host; two containers of a machine, say, are two."""
    known = [socket.gethostname()]
    # Machines may have one name, and so may the containers of one machine.
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        known.append(str(Path("/proc/self/ns/mnt").readlink()))
    return "/".join(known)
