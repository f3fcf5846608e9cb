"""Gloo's messages, which are asked whether they have come: two groups of one process are the two ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, ProcessGroupGloo

from devices import Message, ProcessGroupCommunicator
from devices._gloo_messages import GlooMessage, GlooThreads
from devices.algorithms.listeners import Listeners


def both() -> list[ProcessGroupGloo]:
    """Return both ranks' groups."""
    store, made = HashStore(), {}

    def make(rank: int) -> None:
        made[rank] = ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))

    threads = [threading.Thread(target=make, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[0], made[1]]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_asks_is_told_when_a_message_has_come_and_may_wait_then_and_again() -> None:
    one, other = map(ProcessGroupCommunicator, both())
    came, any_came = torch.zeros(3), torch.zeros(2)
    work, from_any = one.exchange([], [Message(came, 1)]), one.recv_any(any_came, 7)
    assert not work.is_completed()
    assert not from_any.is_completed()
    other.exchange([Message(torch.arange(3.0), 0)], []).wait()
    until(work.is_completed)
    assert not from_any.is_completed()
    sent = other.exchange([Message(torch.ones(2), 0, 7)], [])
    until(sent.is_completed)
    until(from_any.is_completed)
    for each in (work, work, from_any):
        each.wait()
    assert (came.tolist(), any_came.tolist(), from_any.source()) == ([0.0, 1.0, 2.0], [1.0, 1.0], 1)
    for communicator in (one, other):
        communicator.close()


def test_many_messages_of_one_way_that_are_asked_are_waited_for_by_one_thread() -> None:
    def waiting() -> int:
        # Of another test some may still be ending.
        return sum(thread.name == "devices gloo messages" for thread in set(threading.enumerate()) - before)

    before = set(threading.enumerate())
    one, other = map(ProcessGroupCommunicator, both())
    came = torch.zeros(50)
    works = [one.exchange([], [Message(part, 1)]) for part in came.split(1)]
    assert [work.is_completed() for work in works] == [False] * 50
    assert waiting() == 1
    for number in range(50):
        assert not works[number].is_completed()
        other.exchange([Message(torch.tensor([float(number)]), 0)], []).wait()
        until(works[number].is_completed)
    assert came.tolist() == list(range(50))
    assert waiting() == 1
    for communicator in (one, other):
        communicator.close()


def test_a_message_that_is_asked_for_after_a_later_one_is_told_of_before_that_has_come() -> None:
    one, other = map(ProcessGroupCommunicator, both())
    came = torch.zeros(2)
    first, second = (one.exchange([], [Message(part, 1)]) for part in came.split(1))
    assert not second.is_completed()
    assert not first.is_completed()
    other.exchange([Message(torch.tensor([3.0]), 0)], []).wait()
    until(first.is_completed)
    assert not second.is_completed()
    other.exchange([Message(torch.tensor([4.0]), 0)], []).wait()
    until(second.is_completed)
    assert came.tolist() == [3.0, 4.0]
    for communicator in (one, other):
        communicator.close()


def test_messages_that_threads_post_on_one_way_are_numbered_as_they_were_posted() -> None:
    one, other = both()
    came, has_posted = torch.zeros(2), [threading.Event(), threading.Event()]

    class Interrupted:
        """The group, of whose threads the first goes on with another as soon as it has posted."""

        def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
            work = one.recv(tensors, peer, tag)
            if not has_posted[0].is_set():
                has_posted[0].set()
                has_posted[1].wait(0.5)
            return work

    receiving = ProcessGroupCommunicator(one)
    receiving._group = Interrupted()
    works: dict[int, Any] = {}

    def receive(at: int) -> None:
        if at == 1:
            has_posted[0].wait(60)
        works[at] = receiving.exchange([], [Message(came[at : at + 1], 1)])
        has_posted[at].set()

    threads = [threading.Thread(target=receive, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not works[1].is_completed()
    assert not works[0].is_completed()
    for number in range(2):
        other.send([torch.tensor([number + 3.0])], 0, 0).wait()
        until(works[number].is_completed)
    assert came.tolist() == [3.0, 4.0]
    for group in (one, other):
        group.abort()


def test_ways_on_which_nothing_is_under_way_are_forgotten() -> None:
    threads, done = GlooThreads(), threading.Semaphore(0)
    for tag in range(100):
        for _ in range(2):
            threads.listen(lambda: done.release() and None, ("recv", 1, tag), threads.number())
    for _ in range(200):
        assert done.acquire(timeout=60)
    until(lambda: not threads._last)
    threads.close()


def test_who_asks_is_told_once_the_timeout_has_gone_by_and_the_wait_says_so() -> None:
    one, other = both()
    # The group's own timeout is what it has for connecting too, for which a machine in use may need long.
    threads = GlooThreads()
    work = GlooMessage(one.recv([torch.zeros(3)], 1, 0), timedelta(seconds=0.2), threads)
    until(work.is_completed)
    with pytest.raises(RuntimeError, match=r"timed out: nothing came within 0\.2 s"):
        work.wait()
    threads.close()
    for group in (one, other):
        group.abort()


def test_messages_that_come_one_after_the_other_are_waited_for_by_one_thread() -> None:
    listeners, names, done = Listeners("listens"), [], threading.Semaphore(0)

    def job() -> None:
        names.append(threading.get_ident())
        done.release()

    for _ in range(5):
        # Of one key, so that they queue up where the thread is not through yet.
        listeners.listen(job, "key")
        assert done.acquire(timeout=60)
    gate = threading.Event()
    listeners.listen(gate.wait, "held")  # type: ignore[arg-type]
    listeners.listen(job, "held")
    listeners.listen(job, "free")
    assert done.acquire(timeout=60), "another key's is not held up"
    assert not done.acquire(blocking=False), "that of the same key is"
    gate.set()
    assert done.acquire(timeout=60)
    listeners.close()
    assert len(set(names[:5])) == 1
