"""Runs one rank's program of a schedule over a fabric: receivers read where the data lies."""

from __future__ import annotations

import torch

from devices.algorithms.arithmetic import combine
from devices.algorithms.layout import Layout
from devices.algorithms.schedule import Copy, Recv, Schedule, Send
from devices.fabric.mark import Mark
from devices.fabric.pairs import Pairs
from devices.fabric.progress import Steps


def run(schedule: Schedule, rank: int, pairs: Pairs, chunks: Layout, mark: Mark, op: str = "sum") -> Steps:
    """Run `rank`'s program.

    Chunks of no elements are not sent; both sides know their sizes.

    Args:
        schedule: what to run.
        rank: whose program.
        pairs: the rank's messages.
        chunks: the rank's tensors.
        mark: the call; no other schedule that is on its way has its number.
        op: how `reduce` combines, on a dtype that `arithmetic.combine` takes.
    """
    tag = "collective", mark.number
    for step in schedule.program(rank):
        for action in step:
            if isinstance(action, Copy):
                _copy(chunks[action.source], chunks[action.target], op if action.reduce else None)
        sent = {action.chunk for action in step if isinstance(action, Send) and chunks[action.chunk].numel()}
        offers = [
            pairs.offer(action.peer, chunks[action.chunk], tag, mark, is_part=True)
            for action in step
            if isinstance(action, Send) and action.chunk in sent
        ]
        landed: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for action in step:
            if not isinstance(action, Recv) or not (target := chunks[action.chunk]).numel():
                continue
            number = yield from pairs.take(action.peer, tag)
            if action.reduce and action.chunk not in sent:
                _combine(op, rank, action.peer, target, pairs.peek(action.peer, number, target, mark))
                pairs.done(action.peer, number)
                continue
            # A chunk that a peer still reads is combined when it has.
            received = torch.empty_like(target) if action.reduce else target
            pairs.read(action.peer, number, received, mark)
            if action.reduce:
                landed.append((action.peer, target, received))
        yield from offers
        for peer, target, received in landed:
            _combine(op, rank, peer, target, received)


def _combine(op: str, rank: int, peer: int, target: torch.Tensor, received: torch.Tensor) -> None:
    first, second = (received, target) if peer < rank else (target, received)
    combine(op, first, second, target)


def _copy(source: torch.Tensor, target: torch.Tensor, op: str | None) -> None:
    if op is not None:
        combine(op, target, source, target)
    elif source.data_ptr() != target.data_ptr():
        target.copy_(source)
