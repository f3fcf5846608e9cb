"""A process that a rank forks: the rank's groups are closed there, and untouched."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from in_memory import CAPABILITIES, Whole, group_of

from devices._backend import Communicator, Pending
from devices.algorithms.started import DONE
from devices.algorithms.verbs import Verbs
from devices.errors import WorldError


class Counting(Communicator):
    """Counts what reaches it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
        self.calls.append("all_reduce")
        return DONE

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
        self.calls.append("all_gather")
        return DONE

    def abort(self) -> None:
        self.calls.append("abort")

    def close(self) -> None:
        self.calls.append("close")


def in_a_fork(function: Callable[[], None]) -> int:
    """Return the exit status of a forked process that calls `function`: 0 unless it raises."""
    with warnings.catch_warnings():
        # From Python 3.12 on: this process may have threads, of which the child has none and needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_finds_the_groups_closed_and_leaves_the_transport_alone() -> None:
    communicator = Counting()
    verbs = Verbs(communicator, group_of(2, 1, "tp"), CAPABILITIES[Whole])
    x = torch.ones(4)
    # The second call of each is the one that costs least.
    for _ in range(2):
        verbs.all_reduce(x)
        verbs.all_gather(torch.ones(8), x)
    before = list(communicator.calls)

    def child() -> None:
        for call in (lambda: verbs.all_reduce(x), lambda: verbs.all_gather(torch.ones(8), x), verbs.barrier):
            with pytest.raises(WorldError, match="was called, but this process was forked from the rank"):
                call()
        verbs.abort()
        verbs.close()
        assert communicator.calls == before

    assert in_a_fork(child) == 0
    verbs.all_reduce(x)
    assert communicator.calls == [*before, "all_reduce"]
    verbs.close()


def test_what_is_under_way_is_not_waited_for_in_a_forked_process() -> None:
    end = threading.Event()

    class Slow(Counting):
        """Is done when it is told so."""

        def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
            return self  # type: ignore[return-value]

        def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
            return self  # type: ignore[return-value]

        def wait(self) -> None:
            assert end.wait(60)

        def is_completed(self) -> bool:
            return end.is_set()

    verbs = Verbs(Slow(), group_of(2, 1, "tp"), CAPABILITIES[Whole])
    # The second is composed, on a thread that a forked process does not have.
    works = [verbs.all_reduce(torch.ones(4), async_op=True), verbs.broadcast(torch.ones(4), 0, async_op=True)]

    def child() -> None:
        for work in works:
            assert work.is_completed()
            with pytest.raises(WorldError, match="was waited for, but this process was forked from the rank"):
                work.wait()

    assert in_a_fork(child) == 0
    assert not works[0].is_completed()
    end.set()
    for work in works:
        work.wait()
    verbs.close()


def test_a_group_of_one_goes_on_in_a_forked_process() -> None:
    verbs = Verbs(None, group_of(1, 0, "alone"), CAPABILITIES[Whole])

    def child() -> None:
        x = torch.tensor([1.0, 2.0])
        verbs.all_reduce(x)
        assert x.tolist() == [1.0, 2.0]

    assert in_a_fork(child) == 0
