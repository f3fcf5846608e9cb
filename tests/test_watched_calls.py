"""A vendor's call in which the ranks of a group wait for each other: whoever dies in it is named at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import ranks
import torch.distributed as dist
from memory_of_devices import group_of_its_own

import devices
from devices import Device, Group, Store
from devices.errors import CollectiveError
from devices.meeting.roll_call import gone_from_world


def waits_in_the_store() -> str:
    """Return what is said where a rank is killed while its peer waits in the very connection of the store."""
    with devices.init(timeout=300) as world:
        group = group_of_its_own("watched")
        # As it is while a group opens.
        group = replace(group, store=devices.Store(group.store.torch, gone_from_world(group.ranks, group.rank)))

        def call() -> bytes:
            if world.rank == 1:
                group.store.set("begun", True)
                os.kill(os.getpid(), signal.SIGKILL)
            group.store.torch.wait(["begun"])
            return group.store.torch.get("never")

        began = time.monotonic()
        with pytest.raises(CollectiveError) as raised:
            group.watched(call, "a vendor's call")
        assert time.monotonic() - began < 60
        apart = group.store.apart()
        assert apart is not None
        # The world's end needs the connection that the call waits in.
        apart.set("never", True)
        return str(raised.value)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_though_its_peer_waits_in_the_store() -> None:
    survivor, died = ranks.outcomes(2, waits_in_the_store, timeout=120, grace=90)
    assert died[0] == "died"
    assert survivor == ("returned", "rank 0 of 2 in group 'watched': a vendor's call failed: rank 1 died")


def group_in_threads(rank: int, store: Store) -> Group:
    return Group((0, 1), rank, Device("vendor", "vendor", rank), store, timedelta(seconds=60), "g")


def in_threads(calls: list[Callable[[], Any]], kept: dist.Store | None = None) -> tuple[list[Any], list[Any]]:
    """Return what the calls of two ranks return or raise, watched; and what was given up of that, by and by."""
    kept = kept or dist.HashStore()
    given_up: list[Any] = []
    results: list[Any] = [None] * len(calls)

    def one(rank: int) -> None:
        try:
            results[rank] = group_in_threads(rank, Store(kept)).watched(calls[rank], "a vendor's call", given_up.append)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results, given_up


def test_each_gets_what_its_own_call_returned() -> None:
    assert in_threads([lambda: "zero", lambda: "one"]) == (["zero", "one"], [])


def test_a_rank_whose_own_call_has_returned_hears_of_one_that_fails_later() -> None:
    has_returned = threading.Event()

    def fails() -> None:
        has_returned.wait(60)
        # The other has had the time to go on.
        time.sleep(0.3)
        raise RuntimeError("out of memory")

    (through, failed), given_up = in_threads([lambda: has_returned.set() or "a group", fails])
    assert given_up == ["a group"]
    assert type(through) is CollectiveError
    assert str(through).endswith("a vendor's call failed: out of memory, as rank 1 found")
    assert type(failed) is RuntimeError


def test_another_try_does_not_hear_of_the_one_that_failed() -> None:
    def fails() -> None:
        raise RuntimeError("out of memory")

    kept = dist.HashStore()
    (one, other), _ = in_threads([lambda: "zero", fails], kept)
    assert (type(one), type(other)) == (CollectiveError, RuntimeError)
    assert in_threads([lambda: "zero", lambda: "one"], kept) == (["zero", "one"], [])


def test_what_a_call_opens_after_its_rank_has_given_it_up_is_given_up_then() -> None:
    may_return = threading.Event()

    def fails() -> None:
        raise RuntimeError("out of memory")

    try:
        (late, _), given_up = in_threads([lambda: may_return.wait(120) and "a group", fails])
        assert type(late) is CollectiveError
        assert given_up == []
    finally:
        may_return.set()
    deadline = time.monotonic() + 60
    while given_up != ["a group"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Reset(dist.Store):
    """A store whose connections, each of its own, are reset as they are used."""

    def clone(self) -> Reset:
        return self

    def add(self, key: str, amount: int) -> int:
        raise dist.DistNetworkError("Connection reset by peer")


def test_a_call_whose_others_cannot_be_watched_does_not_begin_and_says_whose_it_was() -> None:
    called: list[str] = []
    group = group_in_threads(0, Store(Reset()))
    with pytest.raises(CollectiveError) as raised:
        group.watched(lambda: called.append("a group"), "a vendor's call")
    assert called == []
    assert str(raised.value) == (
        "rank 0 of 2 in group 'g': a vendor's call failed: the store that its ranks meet by is gone: "
        "Connection reset by peer"
    )


def test_a_call_in_a_domain_ends_once_another_domain_has_failed() -> None:
    kept, never, has_begun = dist.HashStore(), threading.Event(), threading.Event()
    world = Store(kept)
    group = group_in_threads(0, world.under("domain 0").hearing(world.under("mixed"), "failed", "another did not open"))

    def waits() -> None:
        has_begun.set()
        never.wait()

    def fail() -> None:
        has_begun.wait(60)
        world.under("mixed").set("failed", True)

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        with pytest.raises(CollectiveError, match=r"a vendor's call failed: another did not open$") as raised:
            group.watched(waits, "a vendor's call")
    finally:
        never.set()
        failing.join()
    assert type(raised.value) is CollectiveError
