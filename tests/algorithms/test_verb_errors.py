"""What goes wrong, and how it is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from in_memory import CAPABILITIES, KINDS, Base, Gather, Point, Whole, World, group_of, on_all_ranks, verbs_of

from devices._backend import Capabilities, Communicator, Message, Pending
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.started import DONE
from devices.algorithms.verbs import Verbs
from devices.errors import (
    ArgumentError,
    CollectiveError,
    CollectiveTimeoutError,
    DevicesError,
    DtypeError,
    PluginError,
    UnsupportedError,
    WorldError,
)


class Failing(Communicator):
    """Whatever is asked of it fails, at the call or at the wait."""

    def __init__(self, error: Exception, at_wait: bool = False) -> None:
        self.error = error
        self.at_wait = at_wait

    def _fail(self) -> Pending:
        if self.at_wait:
            return self  # type: ignore[return-value]
        raise self.error

    def wait(self) -> None:
        raise self.error

    def is_completed(self) -> bool:
        return True

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        return self._fail()

    def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
        return self._fail()

    def close(self) -> None:
        raise self.error


def failing(error: Exception, at_wait: bool = False) -> Verbs:
    return Verbs(Failing(error, at_wait), group_of(2, 1, "tp"), CAPABILITIES[Whole])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.ones(4)


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("at_wait", [False, True])
@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("all_reduce", lambda verbs, **how: verbs.all_reduce(torch.ones(4), **how)),
        ("all_reduce", lambda verbs, **how: verbs.all_reduce(torch.ones(4, dtype=torch.bfloat16), "prod", **how)),
        ("all_gather", lambda verbs, **how: verbs.all_gather(torch.ones(8), torch.ones(4), **how)),
        ("barrier", lambda verbs, **how: verbs.barrier(**how)),
        ("send", lambda verbs, **how: verbs.send(torch.ones(4), 0, **how)),
    ],
)
def test_a_failure_is_wrapped_once_with_rank_group_and_verb(
    verb: str, call: Callable[..., Pending], at_wait: bool, async_op: bool
) -> None:
    cause = ValueError("the wire is cut")
    verbs = failing(cause, at_wait)
    with pytest.raises(CollectiveError) as raised:
        call(verbs, async_op=async_op).wait()
    assert str(raised.value) == f"rank 1 of 2 in group 'tp': {verb} failed: the wire is cut"
    assert raised.value.__cause__ is cause
    assert not isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("cause", [TimeoutError("late"), RuntimeError("Timed out waiting 100ms"), TimeoutError()])
def test_a_timeout_is_told_from_other_failures(cause: Exception, x: torch.Tensor) -> None:
    with pytest.raises(CollectiveTimeoutError, match="all_reduce failed"):
        failing(cause).all_reduce(x)


def test_an_error_of_our_own_passes_as_it_is(x: torch.Tensor) -> None:
    cause = UnsupportedError("not on this chip")
    for async_op in (False, True):
        with pytest.raises(UnsupportedError) as raised:
            failing(cause).barrier(async_op=async_op).wait()
        assert raised.value is cause


def test_a_failed_verb_raises_each_time_it_is_waited_for(x: torch.Tensor) -> None:
    work = failing(ValueError("no"), at_wait=True).all_reduce(x, async_op=True)
    for _ in range(2):
        with pytest.raises(CollectiveError):
            work.wait()
    assert work.is_completed()


def test_a_failure_to_close_is_wrapped_and_closes_all_the_same() -> None:
    verbs = failing(OSError("busy"))
    with pytest.raises(CollectiveError, match="close failed: busy"):
        verbs.close()
    verbs.close()
    with pytest.raises(WorldError):
        verbs.barrier()


EVERY_VERB: list[Callable[[Verbs, torch.Tensor], Any]] = [
    lambda verbs, x: verbs.all_reduce(x),
    lambda verbs, x: verbs.all_gather(x, x),
    lambda verbs, x: verbs.reduce_scatter(x, x),
    lambda verbs, x: verbs.all_to_all(x, x),
    lambda verbs, x: verbs.broadcast(x, 0),
    lambda verbs, x: verbs.reduce(x, 0),
    lambda verbs, x: verbs.gather(x, x, 0),
    lambda verbs, x: verbs.scatter(x, x, 0),
    lambda verbs, x: verbs.permute(x, x, []),
    lambda verbs, x: verbs.barrier(),
    lambda verbs, x: verbs.send(x, 1),
    lambda verbs, x: verbs.recv(x, 1),
    lambda verbs, x: verbs.exchange([], []),
]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("call", EVERY_VERB)
def test_every_verb_of_a_closed_group_says_so(call: Callable[..., Any], size: int, x: torch.Tensor) -> None:
    for verbs in verbs_of(Whole, size):
        verbs.close()
        verbs.close()
        with pytest.raises(WorldError, match="the group is closed"):
            call(verbs, x)
        assert getattr(verbs._communicator, "closed", 1) == 1


class Nothing(Communicator):
    pass


class OnlyGather(Base, Communicator):
    all_gather = Base._all_gather


@pytest.mark.parametrize(
    ("communicator", "message"),
    [
        (
            Nothing(),
            "rank 0 of 2 in group '.*': Nothing cannot carry a group: implement exchange, or all_gather and all_reduce",
        ),
        (OnlyGather(World(2), 0), "OnlyGather cannot carry a group: implement exchange, or all_reduce beside its"),
        (None, "needs a communicator"),
    ],
)
def test_a_communicator_that_lacks_the_least_is_refused(communicator: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Verbs(communicator, group_of(2, 0), CAPABILITIES[Point])


def test_point_to_point_without_exchange_is_unsupported(x: torch.Tensor) -> None:
    verbs = verbs_of(Gather, 2)[0]
    for call in (lambda: verbs.send(x, 1), lambda: verbs.recv(x, 1), lambda: verbs.exchange([Message(x, 1)], [])):
        with pytest.raises(UnsupportedError, match="Gather has no point-to-point messages"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v, x: v.all_reduce(x, "summ"), ArgumentError, "did you mean 'sum'"),
        (lambda v, x: v.all_reduce(x, "band"), DtypeError, "no meaning on torch.float32"),
        (lambda v, x: v.reduce(x, 0, "bxor"), DtypeError, "no meaning"),
        (lambda v, x: v.reduce_scatter(x, torch.ones(8).int(), "avg"), DtypeError, "no meaning"),
        (lambda v, x: v.all_gather(x, x), ArgumentError, "output must have 8 elements, got 4"),
        (lambda v, x: v.all_gather(x, x, [4]), ArgumentError, "2 counts, one for each rank, got 1"),
        (lambda v, x: v.all_gather(x, x, [5, -1]), ArgumentError, "must not be negative"),
        (lambda v, x: v.all_gather(x, x, [3, 1]), ArgumentError, "input must have 3 elements, got 4"),
        (lambda v, x: v.all_gather(torch.ones(8).int(), x), ArgumentError, "of one dtype"),
        (lambda v, x: v.reduce_scatter(x, x), ArgumentError, "input must have 8 elements"),
        (lambda v, x: v.all_to_all(x, torch.ones(5)), ArgumentError, "input must have 4 elements, got 5"),
        (lambda v, x: v.all_to_all(x, x, [1, 3], [2, 2]), ArgumentError, "sends itself 2 elements and expects 1"),
        (lambda v, x: v.broadcast(x, 2), ArgumentError, "src must be a rank of the group, 0 to 1, got 2"),
        (lambda v, x: v.reduce(x, -1), ArgumentError, "dst must be a rank of the group"),
        (lambda v, x: v.gather(None, x, 0), ArgumentError, "needs an output"),
        (lambda v, x: v.gather(x, x, 1), ArgumentError, "output is for the root, rank 1, alone"),
        (lambda v, x: v.gather(x, x, 0), ArgumentError, "output must have 8 elements"),
        (lambda v, x: v.scatter(x, None, 0), ArgumentError, "needs an input"),
        (lambda v, x: v.permute(None, x, [(1, 0)]), ArgumentError, "needs an output"),
        (lambda v, x: v.permute(x, x, [(0, 1), (0, 0)]), ArgumentError, "sends more than once"),
        (lambda v, x: v.permute(x, x, [(0, 1), (1, 1)]), ArgumentError, "receives more than once"),
        (lambda v, x: v.permute(x, x, [(0, 2)]), ArgumentError, "0 to 1, got 2"),
        (lambda v, x: v.send(x, 0), ArgumentError, "the peer is the rank itself"),
        (lambda v, x: v.send(x, 2), ArgumentError, "must be a rank of the group"),
        (lambda v, x: v.recv(x, 1, COLLECTIVE_TAG), ArgumentError, "below 2\\*\\*30"),
        (lambda v, x: v.recv(x, 1, -1), ArgumentError, "at least 0"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_cannot_be_right_are_refused_before_anything_is_sent(
    kind: type, call: Callable[..., Any], error: type[DevicesError], message: str, x: torch.Tensor
) -> None:
    verbs = verbs_of(kind, 2)[0]
    with pytest.raises(error, match=message):
        call(verbs, x)
    communicator: Any = verbs._communicator
    assert communicator.called == []
    assert x.tolist() == [1, 1, 1, 1]


def test_one_rank_alone_refuses_what_has_no_meaning_too(x: torch.Tensor) -> None:
    verbs = Verbs(None, group_of(1, 0), CAPABILITIES[Point])
    with pytest.raises(DtypeError):
        verbs.all_reduce(x.int(), "avg")
    with pytest.raises(ArgumentError):
        verbs.broadcast(x, 1)
    with pytest.raises(ArgumentError):
        verbs.send(x, 0)


def threads_of(group: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"devices {group} ")]


def test_close_finishes_what_is_queued_and_leaves_no_thread() -> None:
    def program(verbs: Verbs, rank: int) -> torch.Tensor:
        tensor = torch.ones(3)
        verbs.all_reduce(tensor, async_op=True)
        assert threads_of("finished")
        verbs.close()
        return tensor

    assert [result.tolist() for result in on_all_ranks(Point, 3, program, "finished")] == [[3, 3, 3]] * 3
    assert threads_of("finished") == []


def test_a_group_that_is_forgotten_leaves_no_thread() -> None:
    verbs = verbs_of(Point, 2, "forgotten")
    for work in [one.barrier(async_op=True) for one in verbs]:
        work.wait()
    assert len(threads_of("forgotten")) == 2
    del verbs, work
    deadline = time.monotonic() + 5
    while threads_of("forgotten") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_of("forgotten") == []


def test_synchronous_verbs_need_no_thread() -> None:
    def program(verbs: Verbs, rank: int) -> bool:
        verbs.all_reduce(torch.ones(3, dtype=torch.bfloat16))
        verbs.barrier()
        return verbs._runner.worker is None

    assert on_all_ranks(Point, 3, program) == [True] * 3


@pytest.mark.parametrize("kind", [Point, Gather])
def test_abort_wakes_what_waits_and_cancels_what_is_queued(kind: type) -> None:
    verbs = verbs_of(kind, 2, "aborted")
    works = [verbs[0].all_reduce(torch.ones(2), "prod", async_op=True) for _ in range(3)]
    time.sleep(0.05)
    verbs[0].abort()
    for work in works:
        with pytest.raises(CollectiveError, match=r"the group was aborted"):
            work.wait()
    verbs[0].close()
    assert threads_of("aborted") == []


def test_a_composed_verb_fails_in_wait_and_later_ones_still_run() -> None:
    class Once(Base, Communicator):
        fails = True

        def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
            if self.fails:
                self.fails = False
                raise ConnectionError("gone")
            return DONE

    verbs = Verbs(Once(World(2), 0), group_of(2, 0), CAPABILITIES[Point])
    first = verbs.barrier(async_op=True)
    second = verbs.barrier(async_op=True)
    with pytest.raises(CollectiveError, match="rank 0 of 2 in group 'test': barrier failed: gone"):
        first.wait()
    second.wait()
    verbs.close()


def test_a_dtype_that_the_backend_does_not_declare_is_refused_before_anything_is_sent() -> None:
    declared = Capabilities(frozenset({torch.float32}), CAPABILITIES[Whole].reductions)
    # Whatever reaches the communicator fails otherwise.
    verbs = Verbs(Failing(ValueError("sent")), group_of(2, 1, "tp"), declared)
    x, out = torch.ones(4, dtype=torch.int64), torch.ones(8, dtype=torch.int64)
    calls: list[Callable[[], Pending]] = [
        lambda: verbs.all_reduce(x),
        lambda: verbs.all_gather(out, x),
        lambda: verbs.reduce_scatter(x, out),
        lambda: verbs.all_to_all(x, x),
        lambda: verbs.broadcast(x, 0),
        lambda: verbs.reduce(x, 0),
        lambda: verbs.gather(None, x, 0),
        lambda: verbs.scatter(x, None, 0),
        lambda: verbs.permute(x, x, [(0, 1)]),
        lambda: verbs.send(x, 0),
        lambda: verbs.recv(x, 0),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError, match=r"rank 1 of 2 in group 'tp': \w+ of torch.int64: .*float32, uint8"):
            call()
    with pytest.raises(CollectiveError, match="sent"):
        verbs.all_reduce(torch.ones(4))


def test_bytes_are_carried_though_they_are_not_declared() -> None:
    verbs = Verbs(Failing(ValueError("sent")), group_of(2, 1, "tp"), Capabilities(frozenset({torch.float32})))
    with pytest.raises(CollectiveError, match="sent"):
        verbs.send(torch.ones(4, dtype=torch.uint8), 0)
