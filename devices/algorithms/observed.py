"""Verbs that someone watches: each call is told to an observer, which may refuse it, before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
    """

    verb: str
    group: Group
    tensor: Tensor | None
    op: str
    is_even: bool
    is_ours: bool


class Observer(Protocol):
    """Is told of groups and calls, on the thread of the rank that makes them; what it raises, the program gets."""

    def opening(self, group: Group, *, is_world: bool) -> None: ...
    def closed(self, group: Group) -> None: ...
    def called(self, call: Called) -> None: ...
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

    def _tell(self, verb: str, tensor: Tensor | None, op: str = "", counts: Sequence[int] | None = None) -> None:
        is_even = not counts or min(counts) == max(counts)
        self._observer.called(Called(verb, self._verbs.group, tensor, op, is_even, self._is_ours))

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending:
        self._tell("all_reduce", tensor, op)
        return self._verbs.all_reduce(tensor, op, async_op=async_op)

    def all_gather(
        self, output: Tensor, input: Tensor, counts: Sequence[int] | None = None, *, async_op: bool = False
    ) -> Pending:
        self._tell("all_gather", input, counts=counts)
        return self._verbs.all_gather(output, input, counts, async_op=async_op)

    def reduce_scatter(
        self,
        output: Tensor,
        input: Tensor,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        self._tell("reduce_scatter", input, op, counts)
        return self._verbs.reduce_scatter(output, input, op, counts, async_op=async_op)

    def all_to_all(
        self,
        output: Tensor,
        input: Tensor,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        self._tell("all_to_all", input, counts=[*(output_counts or ()), *(input_counts or ())])
        return self._verbs.all_to_all(output, input, output_counts, input_counts, async_op=async_op)

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> Pending:
        self._tell("broadcast", tensor)
        return self._verbs.broadcast(tensor, src, async_op=async_op)

    def reduce(self, tensor: Tensor, dst: int, op: str = "sum", *, async_op: bool = False) -> Pending:
        self._tell("reduce", tensor, op)
        return self._verbs.reduce(tensor, dst, op, async_op=async_op)

    def gather(
        self,
        output: Tensor | None,
        input: Tensor,
        dst: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        self._tell("gather", input, counts=counts)
        return self._verbs.gather(output, input, dst, counts, async_op=async_op)

    def scatter(
        self,
        output: Tensor,
        input: Tensor | None,
        src: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        self._tell("scatter", output if input is None else input, counts=counts)
        return self._verbs.scatter(output, input, src, counts, async_op=async_op)

    def permute(
        self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]], *, async_op: bool = False
    ) -> Pending:
        self._tell("permute", input)
        return self._verbs.permute(output, input, pairs, async_op=async_op)

    def barrier(self, *, async_op: bool = False) -> Pending:
        self._tell("barrier", None)
        return self._verbs.barrier(async_op=async_op)

    def send(self, tensor: Tensor, dst: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        self._tell("send", tensor)
        return self._verbs.send(tensor, dst, tag, async_op=async_op)

    def recv(self, tensor: Tensor, src: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        self._tell("recv", tensor)
        return self._verbs.recv(tensor, src, tag, async_op=async_op)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> PendingFrom:
        self._tell("recv", tensor)
        return self._verbs.recv_any(tensor, tag)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, async_op: bool = False) -> Pending:
        for message in sends:
            self._tell("send", message.tensor)
        for message in recvs:
            self._tell("recv", message.tensor)
        return self._verbs.exchange(sends, recvs, async_op=async_op)

    def abort(self) -> None:
        self._verbs.abort()

    def close(self) -> None:
        self._verbs.close()


AnyVerbs = Verbs | ObservedVerbs
