"""A communicator over one of torch's own process groups: what a vendor that has one needs, and what gloo is to us."""

# mypy: disable-error-code="no-any-return"
# torch has no type that is common to its process groups and its backends.

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Protocol, final

import torch

from devices import _torch, _torch_groups
from devices._backend import Communicator, Group, Message, Pending, PendingFrom
from devices._gloo_messages import GlooMessage, GlooThreads
from devices._store import Store
from devices._work import Together
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.started import wait_however_long
from devices.errors import ArgumentError
from devices.fabric.host import open_here

_GLOO = frozenset({torch.uint8, torch.int8, torch.int32, torch.int64})
_NCCL = frozenset({torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64})
_REDUCTIONS: dict[str, dict[str, frozenset[torch.dtype]]] = {
    # Left to composition, for gloo's own answer differs from torch's arithmetic: min and max of floats (a NaN is
    # kept or lost by its place) and all 16-bit floats (rounded at each addition).
    "gloo": {
        "sum": _GLOO | {torch.float32, torch.float64},
        "prod": _GLOO | {torch.float32, torch.float64},
        **dict.fromkeys(("min", "max", "band", "bor", "bxor"), _GLOO),
    },
    "nccl": {
        **dict.fromkeys(("sum", "prod"), _NCCL | {torch.bfloat16}),
        "avg": frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64}),
        **dict.fromkeys(("min", "max"), frozenset({torch.uint8, torch.int8, torch.int32, torch.int64})),
    },
}

_NEVER = COLLECTIVE_TAG + 1
"""The tag of a message that nobody sends."""


class Recovers(Protocol):
    """What a world's ranks find each other by after an error."""

    def run(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks that are left, and a store that they share."""
        ...


@final
class ProcessGroupCommunicator(Communicator):
    """Carries each verb to torch's `process_group`: a `ProcessGroup` or one of torch's backends.

    What the group does not have is composed, or refused, before anything of it is called. Its works are returned as
    they are: on an accelerator `wait` blocks the current stream and not the host. Messages are grouped where torch
    groups them: NCCL makes ungrouped ones wait for each other, and a single one opens a connection of its own.

    Args:
        process_group: for instance `torch.distributed.ProcessGroupGloo(store, rank, size, timeout)`.
        note: what `explain` says of it.
        verbs: what the group has, by the names of `Communicator`'s methods; None for all that torch declares.
        even: what it has for equal parts alone: "all_to_all".
        native: whether torch's own verbs are to go straight to the group: `Communicator.native`.
        messages: `Communicator.messages`, which is aborted and closed with this one.
    """

    def __init__(
        self,
        process_group: Any,
        note: str = "",
        *,
        verbs: Iterable[str] | None = None,
        even: Iterable[str] = (),
        native: bool = False,
        messages: Communicator | None = None,
    ) -> None:
        self.recovery: Recovers | None = None
        """Finds the ranks that are left after an error, where whoever has opened the group has made one."""
        self._group = process_group
        self._is_gloo = type(process_group).__name__ == "ProcessGroupGloo"
        self._timeout = _torch_groups.gloo_timeout(process_group) if self._is_gloo else timedelta()
        self._threads = GlooThreads()
        self.messages = messages
        self.note = note
        self.own = None if verbs is None else _known(verbs)
        self.even = _known(even)
        self.native = process_group if native else None
        self._all_gather, self._reduce_scatter, self._all_to_all = _torch.flat_verbs(process_group)
        self._groups_messages = _torch_groups.groups_messages(process_group)

    @classmethod
    def open(
        cls,
        backend: str,
        group: Group,
        note: str = "",
        *,
        verbs: Iterable[str] | None = None,
        even: Iterable[str] = (),
    ) -> ProcessGroupCommunicator:
        """Return one over a new group of the backend that a vendor's package has registered with torch by that name.

        Torch has it in its account of groups then, as if the program had opened it: a vendor's group may ask torch for
        its ranks. `close` takes it off again.
        """
        # A connection of its own: what waits in it is to hold up nobody else.
        store = (group.store.apart() or group.store).torch
        opened = _torch_groups.open_group(
            backend, store, group.ranks, group.rank, group.timeout, f"{group.name}/{backend}"
        )
        return cls(opened, note, verbs=verbs, even=even)

    @staticmethod
    def reductions_of(transport: str) -> Mapping[str, frozenset[torch.dtype]]:
        """Return what torch's backend `transport` ("gloo", "nccl") reduces exactly as torch's arithmetic does."""
        return MappingProxyType(_REDUCTIONS.get(transport, {}))

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        if self._groups_messages:
            with _torch_groups.grouped_messages(self._group) as works:
                self._start(sends, recvs)
            return works[0]
        works = self._start(sends, recvs)
        return works[0] if len(works) == 1 else Together(works)

    def _start(self, sends: Sequence[Message], recvs: Sequence[Message]) -> list[Any]:
        if not self._is_gloo:
            return self._post(sends, recvs)
        ways = [("recv", recv.peer, recv.tag) for recv in recvs] + [("send", send.peer, send.tag) for send in sends]
        with self._threads.posting:
            works = zip(self._post(sends, recvs), ways, strict=True)
            return [GlooMessage(work, self._timeout, self._threads, way) for work, way in works]

    def _post(self, sends: Sequence[Message], recvs: Sequence[Message]) -> list[Any]:
        works = [self._group.recv([recv.tensor], recv.peer, recv.tag) for recv in recvs]
        return works + [self._group.send([send.tensor], send.peer, send.tag) for send in sends]

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
        return self._all_gather(output, input, _torch.AllgatherOptions())

    def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
        options = _torch.AllreduceOptions()
        options.reduceOp = _torch.reduce_op(op)
        return self._group.allreduce([tensor], options)

    def reduce_scatter(self, output: torch.Tensor, input: torch.Tensor, op: str) -> Pending:
        options = _torch.ReduceScatterOptions()
        options.reduceOp = _torch.reduce_op(op)
        return self._reduce_scatter(output, input, options)

    def all_to_all(
        self, output: torch.Tensor, input: torch.Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        # Some take no counts where they take equal ones alone.
        counts = ([], []) if "all_to_all" in self.even else (list(output_counts), list(input_counts))
        return self._all_to_all(output, input, *counts, _torch.AllToAllOptions())

    def broadcast(self, tensor: torch.Tensor, src: int) -> Pending:
        options = _torch.BroadcastOptions()
        options.rootRank = src
        return self._group.broadcast([tensor], options)

    def reduce(self, tensor: torch.Tensor, dst: int, op: str) -> Pending:
        options = _torch.ReduceOptions()
        options.rootRank = dst
        options.reduceOp = _torch.reduce_op(op)
        return self._group.reduce([tensor], options)

    def gather(self, output: torch.Tensor | None, input: torch.Tensor, dst: int) -> Pending:
        options = _torch.GatherOptions()
        options.rootRank = dst
        outputs = [] if output is None else [list(output.view(self._group.size(), -1))]
        return self._group.gather(outputs, [input], options)

    def scatter(self, output: torch.Tensor, input: torch.Tensor | None, src: int) -> Pending:
        options = _torch.ScatterOptions()
        options.rootRank = src
        inputs = [] if input is None else [list(input.view(self._group.size(), -1))]
        return self._group.scatter([output], inputs, options)

    def recv_any(self, tensor: torch.Tensor, tag: int) -> PendingFrom:
        work = self._group.recv_anysource([tensor], tag)
        return GlooMessage(work, self._timeout, self._threads) if self._is_gloo else _FromAny(work)

    def barrier(self) -> Pending:
        return self._group.barrier(_torch.BarrierOptions())

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        if self.recovery is None:
            return super().survivors()
        # Those of other groups wait for who has died too.
        open_here.abort_all()
        return self.recovery.run()

    def farewell(self, reason: str) -> None:
        """Hear that this rank ends for an error of its program, of which torch's groups cannot tell their peers."""

    def abort(self) -> None:
        try:
            if self._is_gloo:
                self._give_up_gloo()
            self._group.abort()
        finally:
            if self.messages is not None:
                self.messages.abort()

    def _give_up_gloo(self) -> None:
        """Make gloo give up all that is under way, which its own abort does not: a message that is late does."""
        never = torch.empty(1, dtype=torch.uint8)
        for peer in range(self._group.size()):
            # From a peer that is gone it fails at once, and ends nothing.
            if peer != self._group.rank():
                with contextlib.suppress(RuntimeError):
                    self._group.recv([never], peer, _NEVER).wait(timedelta(milliseconds=1))

    def close(self) -> None:
        self.recovery = None
        open_here.discard(self)
        try:
            _torch_groups.close_group(self._group)
        finally:
            self._threads.close()
            if self.messages is not None:
                self.messages.close()


def _known(verbs: Iterable[str]) -> frozenset[str]:
    """Return names of verbs as a set, a wrong one being an error."""
    found = frozenset(verbs)
    if strangers := sorted(verb for verb in found if not callable(getattr(Communicator, verb, None))):
        raise ArgumentError(f"a communicator has no {', '.join(strangers)}; its verbs are methods of Communicator")
    return found


@final
class _FromAny:
    """torch's work of a receive from any rank."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> object:
        return self._work.wait()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        wait_however_long(self._work)

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def source(self) -> int:
        return self._work._source_rank()
