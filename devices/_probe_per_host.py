"""One probe for all ranks of a host: the first of them to ask probes, and the others read its answer in the store."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices._backend import Probe
from devices._probe import DEADLINE, decode, encode
from devices._store import Store
from devices.errors import PluginError

PATIENCE = DEADLINE + 5.0
"""Seconds that a rank waits for another's answer, which comes within the deadline of a probe and a little more."""


def probe_once_per_host(store: Store, name: str, ask: Callable[[], Probe], patience: float = PATIENCE) -> Probe:
    """Return what `ask` returns, called on one rank of each host; what that raises as `PluginError` is raised on all.

    Nobody depends on another's life: whoever gets no answer in time, or has lost the store, asks for itself.

    Args:
        store: that of the ranks.
        name: the backend's.
        ask: probes it.
        patience: how long to wait for another rank's answer.
    """
    asked, answer = (f"devices/probe/{_host()}/{name}/{key}" for key in ("asked", "answer"))
    said: dict[str, Any] | None = None
    is_mine = True
    # Each kind of store has its own errors. One that is gone, as where rank 0 held it and has left with the probe's
    # error, must not hide that error here.
    with contextlib.suppress(Exception):
        is_mine = store.add(asked, 1) == 1
        if not is_mine and store.comes(answer, patience):
            said = store.get(answer)
    if said is not None:
        return decode(said)
    outcome: Probe | PluginError
    try:
        outcome = ask()
    except PluginError as error:
        outcome = error
    if is_mine:
        with contextlib.suppress(Exception):
            store.set(answer, encode(outcome))
    if isinstance(outcome, PluginError):
        raise outcome
    return outcome


def _host() -> str:
    """Return a name of what this process sees as its host; two containers of a machine, say, are two."""
    known = [socket.gethostname()]
    # Machines may have one name, and so may the containers of one machine.
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        known.append(str(Path("/proc/self/ns/mnt").readlink()))
    return "/".join(known)
