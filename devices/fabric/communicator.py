"""A communicator over a fabric: every verb, from memory that peers reach directly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import final

import torch

from devices._backend import Asked, Communicator, Group, Message, Pending, PendingFrom
from devices.algorithms.arithmetic import LOCAL
from devices.algorithms.choose import choose
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.layout import Layout
from devices.algorithms.lines import caller
from devices.algorithms.schedule import Schedule
from devices.errors import CollectiveError
from devices.fabric import executor, through_root
from devices.fabric.interface import Fabric
from devices.fabric.mark import Mark
from devices.fabric.pairs import Pairs
from devices.fabric.progress import FabricWork, Progress, Steps
from devices.fabric.through_root import Call, Results

Tensor = torch.Tensor

REDUCTIONS: Mapping[str, frozenset[torch.dtype]] = MappingProxyType(
    {op: frozenset(dtype for each, dtype in LOCAL if each == op) for op in {op for op, _ in LOCAL}}
)
"""The ops and dtypes that a rank reduces as they are, for a backend's `Capabilities`."""


@final
class FabricCommunicator(Communicator):
    """Carries a group's verbs over its fabric.

    Args:
        fabric: the group's memory, seen from this rank.
        group: the members.
        progress: drives all verbs of this rank; its communicators share one. Without one, this one's alone.
        scheduled: run large collectives as schedules, in which all ranks work at once, instead of through a root.
    """

    reduce_spares = True

    def __init__(
        self, fabric: Fabric, group: Group, progress: Progress | None = None, *, scheduled: bool = False
    ) -> None:
        self._fabric = fabric
        self._group = group
        self._me = group.ranks[group.rank]
        self._progress = Progress() if progress is None else progress
        self._scheduled = scheduled
        self._numbers = itertools.count(1)
        self._pairs = Pairs(fabric)
        self._results = Results(fabric)

    def _mark(self, verb: str, like: Tensor | None, *, size: int = -1, op: str = "", root: int = -1) -> Mark:
        dtype = "" if like is None else "bytes" if like.dtype is torch.uint8 else str(like.dtype).removeprefix("torch.")
        return Mark(verb, self._group.name, next(self._numbers), dtype, size, op, root, self._me, caller())

    def _call(self, mark: Mark) -> Call:
        return Call(self._fabric, mark, self._results)

    def _start(self, mark: Mark, steps: Steps) -> FabricWork:
        return self._progress.start(FabricWork(self._progress, self._fabric, mark, steps))

    def _run(self, mark: Mark, chunks: Layout, schedule: Schedule, op: str = "sum") -> FabricWork:
        return self._start(mark, executor.run(schedule, self._fabric.rank, self._pairs, chunks, mark, op))

    # Collectives.

    def all_reduce(self, tensor: Tensor, op: str) -> Pending:
        mark = self._mark("all_reduce", tensor, size=tensor.numel(), op=op)
        if self._scheduled:
            schedule = choose("all_reduce", self._fabric.size, tensor.nbytes)
            return self._run(mark, Layout(schedule, (tensor.numel(),), tensor, {}, {0: tensor}), schedule, op)
        return self._start(mark, through_root.all_reduce(self._call(mark), tensor, op))

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        mark = self._mark("reduce_scatter", input, size=input.numel(), op=op)
        if self._scheduled:
            schedule = choose("reduce_scatter", self._fabric.size, input.nbytes)
            parts = dict(enumerate(input.split(output.numel())))
            counts = [output.numel()] * self._fabric.size
            layout = Layout(schedule, counts, input, parts, {self._fabric.rank: output})
            return self._run(mark, layout, schedule, op)
        return self._start(mark, through_root.reduce_scatter(self._call(mark), output, input, op))

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        mark = self._mark("all_gather", input, size=input.numel())
        if self._scheduled:
            schedule = choose("all_gather", self._fabric.size, output.nbytes)
            parts = dict(enumerate(output.split(input.numel())))
            counts = [input.numel()] * self._fabric.size
            layout = Layout(schedule, counts, input, {self._fabric.rank: input}, parts)
            return self._run(mark, layout, schedule)
        return self._start(mark, through_root.all_gather(self._call(mark), output, input))

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        mark = self._mark("all_to_all", input)
        starts = torch.tensor([0, *itertools.accumulate(input_counts)], device="cpu")
        call = self._call(mark)
        return self._start(mark, through_root.all_to_all(call, output, input, output_counts, starts))

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        mark = self._mark("broadcast", tensor, size=tensor.numel(), root=src)
        return self._start(mark, through_root.broadcast(self._call(mark), tensor, src))

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Pending:
        mark = self._mark("reduce", tensor, size=tensor.numel(), op=op, root=dst)
        return self._start(mark, through_root.reduce(self._call(mark), tensor, dst, op))

    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Pending:
        mark = self._mark("gather", input, size=input.numel(), root=dst)
        return self._start(mark, through_root.gather(self._call(mark), output, input, dst))

    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Pending:
        mark = self._mark("scatter", output, size=output.numel(), root=src)
        return self._start(mark, through_root.scatter(self._call(mark), output, input, src))

    def barrier(self) -> Pending:
        mark = self._mark("barrier", None)
        return self._start(mark, through_root.barrier(self._call(mark)))

    def run_schedule(self, schedule: Schedule, chunks: Layout, call: Asked) -> Pending:
        """Run this rank's program of a schedule that a verb goes by: receivers read where the data lies."""
        mark = self._mark(call.verb, chunks.like, size=call.size, op=call.op, root=call.root)
        return self._run(mark, chunks, schedule, call.op)

    # Messages.

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        mark = self._message_mark(self._name(sends, recvs), (*sends, *recvs)[0].tensor)
        return self._start(mark, self._exchange(sends, recvs, mark))

    def _exchange(self, sends: Sequence[Message], recvs: Sequence[Message], mark: Mark) -> Steps:
        offers = [self._pairs.offer(send.peer, send.tensor, send.tag, mark) for send in sends]
        for recv in recvs:
            number = yield from self._pairs.take(recv.peer, recv.tag)
            self._pairs.read(recv.peer, number, recv.tensor, mark)
        yield from offers

    def recv_any(self, tensor: Tensor, tag: int) -> PendingFrom:
        source: list[int] = []
        mark = self._message_mark("recv from any rank", tensor)

        def steps() -> Steps:
            peer, number = yield from self._pairs.take_any(tag)
            self._pairs.read(peer, number, tensor, mark)
            source.append(peer)

        return _From(self._start(mark, steps()), source)

    def _message_mark(self, verb: str, tensor: Tensor) -> Mark:
        return Mark(verb, self._group.name, 0, "bytes", tensor.numel(), "", -1, self._me, caller())

    def _name(self, sends: Sequence[Message], recvs: Sequence[Message]) -> str:
        told = [
            f"{way} rank {self._group.ranks[each.peer]}{_tagged(each)}"
            for way, messages in (("send to", sends), ("recv from", recvs))
            for each in messages
        ]
        return " + ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")

    def abort(self) -> None:
        self._fabric.abort()
        self._progress.abandon(self._fabric, CollectiveError(f"{self._group}: the group was aborted"))

    def close(self) -> None:
        self._progress.advance()
        self._progress.abandon(self._fabric, CollectiveError(f"{self._group}: the group was closed meanwhile"))
        self._fabric.leave()


def _tagged(message: Message) -> str:
    return f" with tag {message.tag}" if 0 < message.tag < COLLECTIVE_TAG else ""


@final
class _From:
    """A message whose source is not known beforehand."""

    def __init__(self, work: FabricWork, source: list[int]) -> None:
        self._work = work
        self._source = source

    def wait(self) -> None:
        self._work.wait()

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def source(self) -> int:
        return self._source[0]
