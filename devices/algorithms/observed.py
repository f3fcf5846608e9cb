"""Verbs that someone watches: each call is told to an observer, which may refuse it, before it is made, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, final

import torch

from devices._backend import Capabilities, Group, Message, Pending, PendingFrom
from devices._observer import Called, Ended, Observer
from devices.algorithms.planned import Planned, Plans
from devices.algorithms.verbs import Verbs

Tensor = torch.Tensor


@final
class Observers(Observer):
    """Several observers as one; each is told, in the order in which they came.

    Args:
        observers: who.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def needs(self, dtypes: Sequence[str]) -> None:
        for observer in self._observers:
            observer.needs(dtypes)

    def opening(self, group: Group, *, is_world: bool) -> None:
        for place, observer in enumerate(self._observers):
            try:
                observer.opening(group, is_world=is_world)
            except BaseException:
                _each(self._observers[:place], lambda told: told.closed(group))
                raise

    def closed(self, group: Group) -> None:
        _each(self._observers, lambda observer: observer.closed(group))

    def called(self, call: Called) -> None:
        for place, observer in enumerate(self._observers):
            try:
                observer.called(call)
            except BaseException as error:
                # Those who have let it pass hear that it came to nothing.
                _each(self._observers[:place], partial(_refused, call, error))
                raise

    def ended(self, ended: Ended) -> None:
        _each(self._observers, lambda observer: observer.ended(ended))

    def rank(self, rank: int) -> AbstractContextManager[object]:
        stack = ExitStack()
        for observer in self._observers:
            stack.enter_context(observer.rank(rank))
        return stack


@final
class ObservedVerbs:
    """A group's verbs, watched.

    Args:
        verbs: what does the work.
        observer: who is told.
        is_ours: as in `Called`.
    """

    def __init__(self, verbs: Verbs, observer: Observer, *, is_ours: bool) -> None:
        self._verbs = verbs
        self._observer = observer
        self._is_ours = is_ours

    @property
    def group(self) -> Group:
        return self._verbs.group

    @property
    def plans(self) -> Plans:
        return self._verbs.plans

    @property
    def ways(self) -> dict[str, str]:
        return self._verbs.ways

    @property
    def predicted(self) -> str:
        return self._verbs.predicted

    @property
    def native(self) -> Any:
        return self._verbs.native

    @property
    def has_exchange(self) -> bool:
        return self._verbs.has_exchange

    def go_by(self, planned: Planned | None) -> None:
        self._verbs.go_by(planned)

    @property
    def capabilities(self) -> Capabilities:
        return self._verbs.capabilities

    def _watch(
        self,
        verb: str,
        tensor: Tensor | None,
        start: Callable[[], Pending],
        op: str = "",
        counts: Sequence[int] | None = None,
        peer: int | None = None,
        *,
        async_op: bool,
    ) -> Pending:
        """Tell of a collective, start it, and tell of its end, when it comes."""
        is_even = not counts or min(counts) == max(counts)
        call = Called(verb, self._verbs.group, tensor, op, is_even, self._is_ours, async_op, peer)
        return self._start([call], start, async_op=async_op)

    def _message(self, verb: str, tensor: Tensor, peer: int | None) -> Called:
        return Called(verb, self._verbs.group, tensor, "", True, self._is_ours, False, peer)

    def _start(self, calls: Sequence[Called], start: Callable[[], Pending], *, async_op: bool) -> Pending:
        begun = time.perf_counter()
        told: list[Called] = []
        try:
            for call in calls:
                self._observer.called(call)
                told.append(call)
            pending = start()
        except BaseException as error:
            _end(self._observer, told, begun, error)
            raise
        if async_op:
            return _Awaited(self._observer, told, begun, pending)
        _end(self._observer, told, begun, None)
        return pending

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending:
        start = partial(self._verbs.all_reduce, tensor, op, async_op=async_op)
        return self._watch("all_reduce", tensor, start, op, async_op=async_op)

    def all_reduced(self, tensor: Tensor, op: str) -> Tensor | None:
        """Return None: it is done by the verb that is watched."""
        return None

    def all_gather(
        self, output: Tensor, input: Tensor, counts: Sequence[int] | None = None, *, async_op: bool = False
    ) -> Pending:
        start = partial(self._verbs.all_gather, output, input, counts, async_op=async_op)
        return self._watch("all_gather", input, start, counts=counts, async_op=async_op)

    def reduce_scatter(
        self,
        output: Tensor,
        input: Tensor,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        start = partial(self._verbs.reduce_scatter, output, input, op, counts, async_op=async_op)
        return self._watch("reduce_scatter", input, start, op, counts, async_op=async_op)

    def all_to_all(
        self,
        output: Tensor,
        input: Tensor,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        sizes: Sequence[int] = (),
    ) -> Pending:
        counts = [*(output_counts or ()), *(input_counts or ())]
        start = partial(
            self._verbs.all_to_all, output, input, output_counts, input_counts, async_op=async_op, sizes=sizes
        )
        return self._watch("all_to_all", input, start, counts=counts, async_op=async_op)

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False, within: str = "") -> Pending:
        start = partial(self._verbs.broadcast, tensor, src, async_op=async_op, within=within)
        return self._watch("broadcast", tensor, start, peer=src, async_op=async_op)

    def reduce(self, tensor: Tensor, dst: int, op: str = "sum", *, async_op: bool = False) -> Pending:
        start = partial(self._verbs.reduce, tensor, dst, op, async_op=async_op)
        return self._watch("reduce", tensor, start, op, peer=dst, async_op=async_op)

    def gather(
        self,
        output: Tensor | None,
        input: Tensor,
        dst: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        start = partial(self._verbs.gather, output, input, dst, counts, async_op=async_op)
        return self._watch("gather", input, start, counts=counts, peer=dst, async_op=async_op)

    def scatter(
        self,
        output: Tensor,
        input: Tensor | None,
        src: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        start = partial(self._verbs.scatter, output, input, src, counts, async_op=async_op)
        seen = output if input is None else input
        return self._watch("scatter", seen, start, counts=counts, peer=src, async_op=async_op)

    def permute(
        self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]], *, async_op: bool = False
    ) -> Pending:
        start = partial(self._verbs.permute, output, input, pairs, async_op=async_op)
        return self._watch("permute", input, start, async_op=async_op)

    def barrier(self, *, async_op: bool = False) -> Pending:
        return self._watch("barrier", None, partial(self._verbs.barrier, async_op=async_op), async_op=async_op)

    def send(self, tensor: Tensor, dst: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        start = partial(self._verbs.send, tensor, dst, tag, async_op=async_op)
        return self._start([self._message("send", tensor, dst)], start, async_op=async_op)

    def recv(self, tensor: Tensor, src: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        start = partial(self._verbs.recv, tensor, src, tag, async_op=async_op)
        return self._start([self._message("recv", tensor, src)], start, async_op=async_op)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> PendingFrom:
        started: list[PendingFrom] = []

        def start() -> Pending:
            started.append(self._verbs.recv_any(tensor, tag))
            return started[0]

        pending = self._start([self._message("recv", tensor, None)], start, async_op=True)
        return _AwaitedFrom(pending, started[0])

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, async_op: bool = False) -> Pending:
        calls = [self._message("send", message.tensor, message.peer) for message in sends]
        calls += [self._message("recv", message.tensor, message.peer) for message in recvs]
        return self._start(calls, partial(self._verbs.exchange, sends, recvs, async_op=async_op), async_op=async_op)

    def abort(self) -> None:
        self._verbs.abort()

    def close(self) -> None:
        self._verbs.close()


AnyVerbs = Verbs | ObservedVerbs


@final
class _Awaited:
    """An asynchronous call on its way, whose end the observer hears of once."""

    def __init__(self, observer: Observer, calls: Sequence[Called], begun: float, pending: Pending) -> None:
        self._observer = observer
        self._begun = begun
        self._pending = pending
        self._calls: Sequence[Called] = calls

    def wait(self) -> None:
        try:
            self._pending.wait()
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def is_completed(self) -> bool:
        is_done = self._pending.is_completed()
        if is_done and self._calls:
            # It may have failed, which only waiting tells; that returns at once.
            try:
                self._pending.wait()
            except Exception as error:
                self._end(error)
            else:
                self._end(None)
        return is_done

    def _end(self, error: BaseException | None) -> None:
        calls, self._calls = self._calls, ()
        _end(self._observer, calls, self._begun, error)


@final
class _AwaitedFrom:
    """The same of a message whose source is not known beforehand."""

    def __init__(self, awaited: Pending, pending: PendingFrom) -> None:
        self._awaited = awaited
        self._pending = pending

    def wait(self) -> None:
        self._awaited.wait()

    def is_completed(self) -> bool:
        return self._awaited.is_completed()

    def source(self) -> int:
        return self._pending.source()


def _end(observer: Observer, calls: Sequence[Called], begun: float, error: BaseException | None) -> None:
    seconds = time.perf_counter() - begun
    for call in calls:
        observer.ended(Ended(call, error, seconds))


def _refused(call: Called, error: BaseException, observer: Observer) -> None:
    observer.ended(Ended(call, error, 0.0))


def _each(observers: Sequence[Observer], tell: Callable[[Observer], None]) -> None:
    """Tell all, even if one of them raises; that is raised in the end."""
    with ExitStack() as stack:
        for observer in reversed(observers):
            stack.callback(tell, observer)
