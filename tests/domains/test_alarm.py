"""Which error of a group's ranks all of them raise: the first cause, however slow the store is that tells it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import ranks
import torch.distributed as dist

from devices import Device, Group, Store
from devices.domains import alarm, ended, serving
from devices.domains.alarm import Alarm
from devices.errors import CollectiveError


class LateStore(dist.Store):
    """A store that answers nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = dist.HashStore()
        self.answers = threading.Event()

    def set(self, key: str, value: Any) -> None:
        self.answers.wait(60)
        self.holds.set(key, value)

    def get(self, key: str) -> bytes:
        self.answers.wait(60)
        return self.holds.get(key)

    def add(self, key: str, amount: int) -> int:
        self.answers.wait(60)
        return self.holds.add(key, amount)

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        self.answers.wait(60)
        return self.holds.compare_set(key, bytes(expected).decode(), bytes(desired).decode())

    def check(self, keys: Sequence[str]) -> bool:
        self.answers.wait(60)
        return self.holds.check(list(keys))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self.answers.wait(60)
        self.holds.wait(list(keys), timeout or timedelta(seconds=60))


class Rank:
    """A rank of a group whose domains are its ranks."""

    def __init__(self, rank: int, store: dist.Store) -> None:
        device = Device("chip", "cpu", 0)
        self._store = store
        group = Group((4, 5, 6), rank - 4, device, Store(store), timedelta(seconds=60), "mixed")
        self.alarm = Alarm(group, f"chip {rank}", self.give_up)
        self.had_told: list[bool] = []

    def give_up(self) -> None:
        """Note whether the others can read why."""
        if isinstance(self._store, LateStore):
            self.had_told.append(self._store.holds.check(["alarm/error"]))

    def fails(self, error: Exception) -> str:
        with pytest.raises(CollectiveError) as caught, self.alarm:
            raise error
        return str(caught.value)


def test_a_rank_that_fails_has_said_why_before_others_can_notice_also_to_a_store_that_is_slow() -> None:
    store = LateStore()
    first, leaving = Rank(4, store), Rank(6, store)
    left: list[bool] = []

    def leave() -> None:
        leaving.alarm.leave("ValueError: batch 7 is bad")
        left.append(store.holds.check(["alarm/left/2"]))

    leaves = threading.Thread(target=leave, daemon=True)
    leaves.start()
    # As long as is promised for an error to be told on a machine that does nothing else, and longer.
    threading.Timer(2.5, store.answers.set).start()
    assert "chip 4: the cause, as rank 4 of chip 4 found" in first.fails(RuntimeError("the cause"))
    leaves.join(30)
    assert (first.had_told, left) == ([True], [True])
    assert first.alarm.reason_of(2) == "ValueError: batch 7 is bad"
    second = Rank(5, store)
    assert "chip 5: the cause, as rank 4 of chip 4 found" in second.fails(RuntimeError("Connection closed by peer"))


def test_a_rank_that_fails_says_so_at_once_while_another_thread_waits_at_the_stores_connection() -> None:
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = dist.TCPStore("127.0.0.1", served.port, is_master=False, wait_for_workers=False)
    waits = threading.Thread(target=store.wait, args=(["never"], timedelta(seconds=60)), daemon=True)
    waits.start()
    rank, start = Rank(4, store), time.monotonic()
    assert "the cause, as rank 4 of chip 4 found" in rank.fails(RuntimeError("the cause"))
    # Else it would be as long as it waits for a store that does not answer.
    assert time.monotonic() - start < 9
    assert served.check(["alarm/error"])
    served.set("never", "")
    waits.join(30)


def _serve(told: Connection) -> None:
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told.send(served.port)
    told.poll(300)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which says whether a process is stopped")
def test_a_store_whose_process_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 600.0)
    ranks.warm_up()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    store = dist.TCPStore("127.0.0.1", here.recv(), is_master=False, wait_for_workers=False)
    assert server.pid is not None
    assert serving.servers_at(store.port) == [server.pid]
    os.kill(server.pid, signal.SIGSTOP)
    try:
        rank, start = Rank(4, store), time.monotonic()
        assert "the cause, as rank 4 of chip 4 found" in rank.fails(RuntimeError("the cause"))
        assert rank.alarm.reason_of(1) == ""
        # As long as it would be waited for, and the longest that a machine which is busy takes.
        assert time.monotonic() - start < 60
    finally:
        server.kill()
        server.join()


def test_a_store_that_did_not_answer_is_asked_again_in_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    store = LateStore()
    rank = Rank(4, store)
    with monkeypatch.context() as patch, rank.alarm:
        patch.setattr(serving, "PATIENCE", 0.0)
        assert rank.alarm.reason_of(1) == ""
    store.answers.set()
    assert "the cause, as rank 4 of chip 4 found" in rank.fails(RuntimeError("the cause"))
    assert store.holds.check(["alarm/error"])


def test_a_rank_that_ends_a_call_in_which_others_wait_for_it_has_said_why() -> None:
    store = LateStore()
    store.answers.set()
    rank = Rank(4, store)
    rank.alarm.ring(ValueError("this chip reduces no int32"))
    assert rank.had_told == [True]
    # What waited there is given up then, which is not why.
    assert "this chip reduces no int32, as rank 4 of chip 4 found" in rank.fails(
        RuntimeError("rank 4 aborted the group")
    )


def test_who_asks_whether_messages_are_through_does_not_wait_for_a_store_that_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As long as it would be waited for; the store answers after 60 seconds, or once it is told to.
    monkeypatch.setattr(ended, "_ANSWER", 60.0)
    monkeypatch.setattr(alarm, "LOOK", 0.0)
    store = LateStore()
    first, start = Rank(4, store), time.monotonic()
    assert not first.alarm.has_rung()
    assert not first.alarm.has_rung()
    assert time.monotonic() - start < 30
    store.answers.set()
    Rank(5, store).fails(RuntimeError("the cause"))
    while not first.alarm.has_rung():
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    assert first.alarm.has_rung()
