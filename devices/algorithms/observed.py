"""Verbs that someone watches: each call is told to an observer, which may refuse it, before it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, final

import torch

from devices._backend import Capabilities, Group, Message, Pending, PendingFrom
from devices.algorithms.verbs import Verbs

Tensor = torch.Tensor


@final
@dataclass(frozen=True, slots=True)
class Called:
    """A call that is about to be made.

    Args:
        verb: its name.
        group: the group, seen from the rank that calls.
        tensor: what the rank sends, or receives where it sends nothing; None for a barrier.
        op: the reduce op, "" where there is none.
        is_even: whether all ranks' parts are of one size.
        is_ours: whether the program called a verb of `devices`, which composes what the hardware lacks; if not, it
            called torch's own.
        is_async: whether it is a collective that the program goes on beside.
    """

    verb: str
    group: Group
    tensor: Tensor | None
    op: str
    is_even: bool
    is_ours: bool
    is_async: bool


class Observer(Protocol):
    """Is told of groups and calls, on the thread of the rank that makes them; what it raises, the program gets."""

    def opening(self, group: Group, *, is_world: bool) -> None: ...
    def closed(self, group: Group) -> None: ...
    def called(self, call: Called) -> None: ...
    def ended(self, call: Called) -> None:
        """Hear that an asynchronous call was waited for, or was found to be done."""
        ...

    def rank(self, rank: int) -> AbstractContextManager[object]:
        """Return what a thread rank's function is run in."""
        ...


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
    def capabilities(self) -> Capabilities:
        return self._verbs.capabilities

    def _tell(
        self, verb: str, tensor: Tensor | None, op: str = "", counts: Sequence[int] | None = None, *, async_op: bool
    ) -> Callable[[Pending], Pending]:
        """Tell of a call; return what becomes of what it returns."""
        is_even = not counts or min(counts) == max(counts)
        call = Called(verb, self._verbs.group, tensor, op, is_even, self._is_ours, async_op)
        self._observer.called(call)
        return partial(_Awaited, self._observer, call) if async_op else _itself

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending:
        told = self._tell("all_reduce", tensor, op, async_op=async_op)
        return told(self._verbs.all_reduce(tensor, op, async_op=async_op))

    def all_gather(
        self, output: Tensor, input: Tensor, counts: Sequence[int] | None = None, *, async_op: bool = False
    ) -> Pending:
        told = self._tell("all_gather", input, counts=counts, async_op=async_op)
        return told(self._verbs.all_gather(output, input, counts, async_op=async_op))

    def reduce_scatter(
        self,
        output: Tensor,
        input: Tensor,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        told = self._tell("reduce_scatter", input, op, counts, async_op=async_op)
        return told(self._verbs.reduce_scatter(output, input, op, counts, async_op=async_op))

    def all_to_all(
        self,
        output: Tensor,
        input: Tensor,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        counts = [*(output_counts or ()), *(input_counts or ())]
        told = self._tell("all_to_all", input, counts=counts, async_op=async_op)
        return told(self._verbs.all_to_all(output, input, output_counts, input_counts, async_op=async_op))

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> Pending:
        told = self._tell("broadcast", tensor, async_op=async_op)
        return told(self._verbs.broadcast(tensor, src, async_op=async_op))

    def reduce(self, tensor: Tensor, dst: int, op: str = "sum", *, async_op: bool = False) -> Pending:
        told = self._tell("reduce", tensor, op, async_op=async_op)
        return told(self._verbs.reduce(tensor, dst, op, async_op=async_op))

    def gather(
        self,
        output: Tensor | None,
        input: Tensor,
        dst: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        told = self._tell("gather", input, counts=counts, async_op=async_op)
        return told(self._verbs.gather(output, input, dst, counts, async_op=async_op))

    def scatter(
        self,
        output: Tensor,
        input: Tensor | None,
        src: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        told = self._tell("scatter", output if input is None else input, counts=counts, async_op=async_op)
        return told(self._verbs.scatter(output, input, src, counts, async_op=async_op))

    def permute(
        self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]], *, async_op: bool = False
    ) -> Pending:
        told = self._tell("permute", input, async_op=async_op)
        return told(self._verbs.permute(output, input, pairs, async_op=async_op))

    def barrier(self, *, async_op: bool = False) -> Pending:
        told = self._tell("barrier", None, async_op=async_op)
        return told(self._verbs.barrier(async_op=async_op))

    def send(self, tensor: Tensor, dst: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        self._tell("send", tensor, async_op=False)
        return self._verbs.send(tensor, dst, tag, async_op=async_op)

    def recv(self, tensor: Tensor, src: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        self._tell("recv", tensor, async_op=False)
        return self._verbs.recv(tensor, src, tag, async_op=async_op)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> PendingFrom:
        self._tell("recv", tensor, async_op=False)
        return self._verbs.recv_any(tensor, tag)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, async_op: bool = False) -> Pending:
        for message in sends:
            self._tell("send", message.tensor, async_op=False)
        for message in recvs:
            self._tell("recv", message.tensor, async_op=False)
        return self._verbs.exchange(sends, recvs, async_op=async_op)

    def abort(self) -> None:
        self._verbs.abort()

    def close(self) -> None:
        self._verbs.close()


AnyVerbs = Verbs | ObservedVerbs


@final
class _Awaited:
    """An asynchronous call on its way, whose end the observer hears of once."""

    def __init__(self, observer: Observer, call: Called, pending: Pending) -> None:
        self._observer = observer
        self._pending = pending
        self._call: Called | None = call

    def wait(self) -> None:
        try:
            self._pending.wait()
        finally:
            self._end()

    def is_completed(self) -> bool:
        is_done = self._pending.is_completed()
        if is_done:
            self._end()
        return is_done

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._observer.ended(call)


def _itself(pending: Pending) -> Pending:
    return pending
