"""Runs one rank's program of a schedule over a communicator's `exchange`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch

from devices._backend import Message, Pending
from devices.algorithms.arithmetic import combine
from devices.algorithms.layout import Layout
from devices.algorithms.schedule import Copy, Schedule, Send
from devices.errors import PluginError

COLLECTIVE_TAG = 1 << 30
"""The tag of all messages of schedules; those of users lie below."""

Exchange = Callable[[Sequence[Message], Sequence[Message]], Pending]

Spares = dict[int, list[torch.Tensor]]
"""Where received data waits to be combined, by size; most steps need one, of the same size as the last."""


def run(schedule: Schedule, rank: int, exchange: Exchange, chunks: Layout, op: str = "sum") -> None:
    """Run `rank`'s program and return when it is done.

    Chunks of no elements are not sent; both sides know their sizes.

    Args:
        schedule: what to run.
        rank: whose program.
        exchange: a communicator's.
        chunks: the rank's tensors.
        op: how `reduce` combines, on a dtype that `arithmetic.combine` takes.
    """
    for pending in steps(schedule, rank, exchange, chunks, op, {}):
        if pending is not None:
            pending.wait()


def steps(
    schedule: Schedule, rank: int, exchange: Exchange, chunks: Layout, op: str, free: Spares
) -> Iterator[Pending | None]:
    """Start each step of `rank`'s program and yield its messages, None if it has none; to be resumed once they came.

    Args:
        schedule: what to run.
        rank: whose program.
        exchange: a communicator's.
        chunks: the rank's tensors.
        op: as for `run`.
        free: memory for what is received, which other runs may share.
    """
    for step in schedule.program(rank):
        sends: list[Message] = []
        recvs: list[Message] = []
        landed: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for action in step:
            if isinstance(action, Copy):
                _copy(chunks[action.source], chunks[action.target], op if action.reduce else None)
                continue
            tensor = chunks[action.chunk]
            if not tensor.numel():
                continue
            if isinstance(action, Send):
                sends.append(Message(tensor.view(torch.uint8), action.peer, COLLECTIVE_TAG))
                continue
            if action.reduce:
                spare = free.get(tensor.numel())
                target, tensor = tensor, spare.pop() if spare else torch.empty_like(tensor)
                landed.append((action.peer, target, tensor))
            recvs.append(Message(tensor.view(torch.uint8), action.peer, COLLECTIVE_TAG))
        yield _started(exchange, sends, recvs) if sends or recvs else None
        for peer, target, received in landed:
            first, second = (received, target) if peer < rank else (target, received)
            combine(op, first, second, target)
            free.setdefault(received.numel(), []).append(received)


def _started(exchange: Exchange, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
    pending: object = exchange(sends, recvs)
    if pending is None:
        # A step without messages is None too, and nobody would wait for these.
        raise PluginError(
            "exchange returned None; it is to return a devices.Pending, with `wait` and `is_completed`, also where its "
            "messages are done"
        )
    return cast(Pending, pending)


def _copy(source: torch.Tensor, target: torch.Tensor, op: str | None) -> None:
    if op is not None:
        combine(op, target, source, target)
    elif source.data_ptr() != target.data_ptr():
        target.copy_(source)
