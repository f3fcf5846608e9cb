"""After an error, the ranks of a world of several domains that are still there find each other: each has a way to it.

Every rank serves a store of its own from the opening of the world on. Who can be connected to there is alive; they meet
at the lowest one's, which decides who goes on. If that one dies before it has, they meet at the next one's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import final

import torch.distributed as dist

from devices._backend import Group
from devices._store import Store
from devices.algorithms.concurrency import concurrency
from devices.errors import CollectiveError, CollectiveTimeoutError, UnsupportedError

_INTERFACE = "GLOO_SOCKET_IFNAME"

_CONNECT = 2.0
"""Seconds after which a host that says nothing at all counts as gone."""

_REACH = timedelta(seconds=10)
"""For so long torch tries to connect to who has just been there."""

_NAP = 0.02


_carries_no_world: ContextVar[bool] = ContextVar("devices_carries_no_world", default=False)


@contextlib.contextmanager
def beside_a_world() -> Iterator[None]:
    """Let groups that are opened meanwhile serve no store: others carry the world, and are asked who is left."""
    token = _carries_no_world.set(True)
    try:
        yield
    finally:
        _carries_no_world.reset(token)


def is_recovered() -> bool:
    """Return whether the group that is being opened is the world that may be recovered."""
    # That is the one that is opened before torch has one. Ranks that take turns as threads of one process end together.
    return not (_carries_no_world.get() or dist.is_initialized() or concurrency().is_cooperative)


@final
class Recovery:
    """One rank's part in it; every rank of the world makes one as it opens.

    Args:
        group: the world.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._store: dist.TCPStore | None = None
        self._gone: set[int] = set()
        address, port, reason = "", 0, ""
        try:
            address = _address(group.store.torch)
            self._store, port = _serve(address, group.timeout)
        except (OSError, RuntimeError) as error:
            # The world is of use without.
            reason = f"cannot listen at {address}: {error}".partition("\n")[0]
        said = group.share("recovery", [address, port, reason, _network()])
        self._places: list[tuple[str, int]] = [(host, at) for host, at, _, _ in said]
        self._networks: list[str] = [network for _, _, _, network in said]
        self._reason = next((f"{self._name(rank)} {why}" for rank, (_, _, why, _) in enumerate(said) if why), "")

    def run(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks of the group that are there, and a store that they share.

        Raises:
            CollectiveTimeoutError: a rank neither died nor came within the group's timeout.
            UnsupportedError: some ranks are known by an address that others cannot reach.
        """
        me, store = self._group.rank, self._served()
        deadline = time.monotonic() + self._group.timeout.total_seconds()
        while True:
            leader = next(rank for rank in range(self._group.size) if rank == me or self._is_alive(rank))
            if leader == me:
                return self._lead(store, deadline)
            if (found := self._follow(leader, deadline)) is not None:
                return found

    def _served(self) -> dist.TCPStore:
        """Return this rank's store.

        Raises:
            UnsupportedError: a rank has none, or one that others cannot reach.
        """
        if self._reason or self._store is None:
            raise UnsupportedError(f"{self._group}: recover: {self._reason}; set {_INTERFACE}")
        local = [rank for rank, (host, _) in enumerate(self._places) if ipaddress.ip_address(host).is_loopback]
        if local and len(set(self._networks)) > 1:
            raise UnsupportedError(
                f"{self._group}: recover: {self._name(local[0])} is known as {self._places[local[0]][0]}, which other "
                f"hosts cannot reach; set {_INTERFACE}, or a MASTER_ADDR that is the same address on all hosts"
            )
        return self._store

    def _is_alive(self, rank: int) -> bool:
        if rank not in self._gone:
            try:
                socket.create_connection(self._places[rank], timeout=_CONNECT).close()
            except OSError:
                self._gone.add(rank)
        return rank not in self._gone

    def _lead(self, store: dist.TCPStore, deadline: float) -> tuple[tuple[int, ...], Store]:
        """Wait until each rank has come, or is gone; tell those that have who they are."""
        me = self._group.rank
        others = [rank for rank in range(self._group.size) if rank != me]
        while True:
            late = [rank for rank in others if not store.check([f"here/{rank}"]) and self._is_alive(rank)]
            if not late:
                break
            self._nap(deadline, late, "is alive, but does not recover")
        there = tuple(
            rank
            for rank in range(self._group.size)
            if rank == me or (store.check([f"here/{rank}"]) and self._is_alive(rank))
        )
        Store(store).set("decided", list(there))
        return there, _shared(store)

    def _follow(self, leader: int, deadline: float) -> tuple[tuple[int, ...], Store] | None:
        """Come to the leader, and return what it has decided; None if it has died before."""
        host, port = self._places[leader]
        with contextlib.suppress(dist.DistError):
            store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_REACH)
            store.set_timeout(self._group.timeout)
            store.set(f"here/{self._group.rank}", "")
            while not store.check(["decided"]):
                self._nap(deadline, [leader], "has not decided who recovers")
            ranks = tuple(Store(store).get("decided"))
            if self._group.rank not in ranks:
                raise CollectiveError(f"{self._group}: recover: {self._name(leader)} took this rank for gone")
            return ranks, _shared(store)
        self._nap(deadline, [leader], "cannot be reached, and has not died")
        return None

    def _name(self, rank: int) -> str:
        return f"rank {self._group.ranks[rank]}"

    def _nap(self, deadline: float, late: list[int], what: str) -> None:
        if time.monotonic() > deadline:
            limit = timedelta(seconds=self._group.timeout.total_seconds())
            who = " and ".join(map(self._name, late))
            raise CollectiveTimeoutError(f"{self._group}: recover failed: after {limit} {who} {what}")
        time.sleep(_NAP)


def _serve(address: str, timeout: timedelta) -> tuple[dist.TCPStore, int]:
    """Return a store that this process serves at an address, to others too, and its port."""
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port: int = listener.getsockname()[1]
    # One that waits for workers would count ranks.
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )
    return store, port


def _shared(store: dist.Store) -> Store:
    return Store(dist.PrefixStore("recovered", store))


def _network() -> str:
    """Return what is the same for processes that reach each other by a loopback address, and for no others."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}"
    return platform.node()


def _address(store: dist.Store) -> str:
    """Return the address by which other hosts reach this process: of gloo's interface, or towards the store."""
    if (interface := os.environ.get(_INTERFACE, "").split(",")[0].strip()) and (found := _address_of(interface)):
        return found
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    host, port = getattr(store, "host", "127.0.0.1"), getattr(store, "port", 1)
    with contextlib.suppress(OSError):
        family, _, _, _, towards = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            # Nothing is sent: the system chooses the way, and the address at its beginning.
            way.connect(towards)
            return str(way.getsockname()[0])
    return "127.0.0.1"


def _address_of(interface: str) -> str:
    """Return the first IPv4 address of an interface; "" if it has none."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        # Linux's SIOCGIFADDR.
        found = fcntl.ioctl(asking.fileno(), 0x8915, interface.encode()[:15].ljust(256, b"\0"))
        return socket.inet_ntoa(found[20:24])
    return ""
