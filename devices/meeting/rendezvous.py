"""Where the ranks of a program meet: a store at the address that torchrun's variables name."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from datetime import timedelta

import torch.distributed as dist

from devices._store import Store
from devices.meeting.roll_call import check_alone

_kept: dist.Store | None = None
"""What this process served for the last world that it opened."""


def shared_store(host: str, port: int, rank: int, timeout: timedelta) -> dist.Store:
    """Return the store there, which rank 0 serves unless its launcher does.

    Raises:
        torch.distributed.DistError: the port is taken, or nobody is there.
        TimeoutError: somebody is there who is not one of torch's stores.
    """
    if _serves(rank):
        return serve(host, port, timeout)
    return reach(host, port, timeout)


def keep(store: dist.Store | None, rank: int) -> None:
    """Serve a store of `shared_store` on when its world is closed; with None, no longer that of the world before.

    Ranks that have closed one world come for the next while rank 0 may still close the first: the store that they
    reach must be the one that rank 0 comes to.
    """
    global _kept
    _kept = store if _serves(rank) else None


def _serves(rank: int) -> bool:
    return rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def serve(host: str, port: int, timeout: timedelta = timedelta(seconds=300)) -> dist.TCPStore:
    """Return a store that this process serves: to this host alone if `host` is a name of the loopback.

    Args:
        host: the address that others are told.
        port: the port; with 0 any that is free, of the loopback.
        timeout: how long its operations wait.
    """
    listening = None
    if is_loopback(host):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1" if host == "localhost" else host, port))
        except OSError:
            # It may be this process's own store of an earlier world, which torch knows.
            listener.close()
        else:
            port = listener.getsockname()[1]
            listening = listener.detach()
    # One that waits for workers would count ranks, and hang where they disagree.
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listening,
    )


def reach(host: str, port: int, timeout: timedelta) -> dist.Store:
    """Return the store that another process serves."""
    found: list[dist.Store | BaseException] = []

    def connect() -> None:
        try:
            found.append(dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=connect, name="devices rendezvous", daemon=True)
    thread.start()
    # torch itself gives up at the timeout where nobody listens; for an answer it waits for ever.
    thread.join(min(timeout.total_seconds() + 2, threading.TIMEOUT_MAX))
    if not found:
        raise TimeoutError(
            f"something listens there that does not answer as torch's store does, for {timeout}; is the port another "
            "program's?"
        )
    [store] = found
    if isinstance(store, BaseException):
        raise store
    return store


def tell_the_other_first(host: str, port: int, size: int, timeout: timedelta) -> None:
    """Raise if it is another rank 0 that has the port; that one, if it waits for others, raises too.

    Raises:
        WorldError: it is.
    """
    with contextlib.suppress(dist.DistError, TimeoutError):
        store = Store(reach(host, port, min(timeout, timedelta(seconds=5))))
        # It counts itself a moment after it has the port.
        if store.comes("devices/openings/0", 5):
            opening = store.add("devices/openings/0", 0)
            before, nobodys = (dist.PrefixStore(f"devices/{name}", store.torch) for name in (opening, "nobody"))
            check_alone(nobodys, before, 0, size)


def is_loopback(host: str) -> bool:
    """Return whether `host` is this host as only itself sees it. What a name means elsewhere is not looked up."""
    try:
        return host == "localhost" or (ipaddress.ip_address(host).is_loopback and ":" not in host)
    except ValueError:
        return False
