"""What ranks that open a world together tell each other of one that fails, is late, or is on another host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from devices import Device, Group, Store
from devices.domains import recovery
from devices.domains.mixed import _all_opened
from devices.errors import CollectiveTimeoutError, UnsupportedError, WorldError
from devices.meeting.vendors import _versions


def told(call: Callable[[Group], object], size: int, store: Store, seconds: float = 30) -> list[Exception | None]:
    """Return what a call raises on each of so many ranks, which are threads."""

    def on(rank: int) -> Exception | None:
        group = Group(tuple(range(size)), rank, Device("chip", "cpu", rank), store, timedelta(seconds=seconds), "mixed")
        try:
            call(group)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(on, range(size)))


def test_a_domain_that_does_not_open_is_the_same_error_on_every_rank_also_where_two_fail() -> None:
    both = threading.Barrier(2)

    def open_domain(group: Group) -> None:
        failure = None
        if group.rank != 0:
            both.wait(30)
            failure = WorldError(f"no core for rank {group.rank}")
        _all_opened(group, "cpu" if group.rank == 0 else "chip", failure)

    errors = told(open_domain, 3, Store(dist.HashStore()))
    assert {type(error) for error in errors} == {WorldError}
    found = {str(error).partition(": ")[2] for error in errors}
    assert len(found) == 1, found
    assert found.pop() in {f"domain chip did not open on rank {rank}: no core for rank {rank}" for rank in (1, 2)}


def test_a_rank_that_failed_and_ended_is_told_as_having_failed() -> None:
    store = Store(dist.HashStore(), lambda: "rank 1 died")
    store.under("mixed").set("failed", ["WorldError", "no core", "chip", 1])
    [error] = told(lambda group: _all_opened(_of_two(group), "cpu", None), 1, store)
    assert isinstance(error, WorldError)
    assert str(error).endswith("cpu: domain chip did not open on rank 1: no core")


def _of_two(group: Group) -> Group:
    return Group((0, 1), 0, group.device, group.store, group.timeout, group.name)


def test_all_ranks_say_which_one_is_late() -> None:
    def tell(group: Group) -> None:
        if group.rank != 2:
            _versions(group, {"backend": "chip"})

    first, second, late = told(tell, 3, Store(dist.HashStore()), 0.5)
    assert late is None
    for error in (first, second):
        assert isinstance(error, CollectiveTimeoutError)
        assert "rank 2 did not come" in str(error)
    assert str(second).startswith("rank 1 of 3")


def test_ranks_of_several_hosts_that_know_each_other_by_the_loopback_do_not_recover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = threading.local()
    monkeypatch.setattr(recovery, "_network", lambda: host.name)

    def recover(group: Group) -> None:
        host.name = f"host {group.rank}"
        recovery.Recovery(group).run()

    for error in told(recover, 2, Store(dist.HashStore())):
        assert isinstance(error, UnsupportedError)
        assert "rank 0 is known as 127.0.0.1, which other hosts cannot reach; set GLOO_SOCKET_IFNAME" in str(error)
