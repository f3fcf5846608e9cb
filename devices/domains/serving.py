"""Who serves a store: whether that process is there, and whether it is stopped, so that it answers nobody."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Collection
from pathlib import Path

import torch.distributed as dist

PATIENCE = 10.0
"""Seconds for which a store is waited for, which answers at once, or later where the machine is busy with other things:
not at all where who serves it is seen to be stopped."""

ELSEWHERE = 1.25
"""Seconds for which one is that another host serves, where a process that is stopped cannot be told from a late one;
after a first look, and after half as long at most, in which that host is found to be another."""

_CONNECT = 2.0
"""Seconds after which a host that says nothing at all is not waited for."""

_LOOK = 0.05


def check_served(store: dist.Store) -> None:
    """Raise if who serves a store has ended: torch would say so at length on standard error."""
    if (served := _tcp(store)) is not None:
        socket.create_connection((served.host, served.port), timeout=_CONNECT).close()


def has_answered(asking: threading.Thread, store: dist.Store) -> bool:
    """Wait until a thread that asks a store has ended; return False where the store does not answer."""
    asking.join(5 * _LOOK)
    if not asking.is_alive():
        return True
    is_here, processes = _found(store)
    was_stopped = False
    # Where this machine is busy each look takes longer than it should, as the answer does.
    for _ in range(int((PATIENCE if is_here else ELSEWHERE) / _LOOK)):
        asking.join(_LOOK)
        if not asking.is_alive():
            return True
        # A process that the server has forked may hold its socket too.
        is_stopped = bool(processes) and all(map(_is_stopped, processes))
        if is_stopped and was_stopped:
            return False
        was_stopped = is_stopped
    return False


def _tcp(store: dist.Store) -> dist.TCPStore | None:
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store if isinstance(store, dist.TCPStore) else None


def _found(store: dist.Store) -> tuple[bool, list[int]]:
    """Return whether a store may be served on this host, and by which processes, as far as that is seen."""
    if (served := _tcp(store)) is None:
        return True, []
    try:
        with socket.create_connection((served.host, served.port), timeout=ELSEWHERE / 2) as connected:
            # Who connects to an address of its own host has that address itself.
            is_here = connected.getsockname()[0] == connected.getpeername()[0]
    except OSError:
        return False, []
    return is_here, servers_at(served.port) if is_here else []


def servers_at(port: int) -> list[int]:
    """Return the processes of this host that listen at a port, as far as this one can look into them."""
    listen, inodes = "0A", set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == listen and int(local.rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{rest[5]}]")
    folders = Path("/proc").glob("[0-9]*/fd") if inodes else ()
    return [int(folder.parent.name) for folder in folders if _has_one_of(folder, inodes)]


def _has_one_of(folder: Path, names: Collection[str]) -> bool:
    """Return whether one of a process's descriptors is one of these."""
    # It may have ended, or be another user's.
    with contextlib.suppress(OSError):
        for descriptor in folder.iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in names:
                    return True
    return False


def _is_stopped(process: int) -> bool:
    """Return whether a process is stopped, by a signal or by who traces it."""
    try:
        # The name, in parentheses, may hold spaces; the state comes after it.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
