"""Runs the programs of all ranks in one process on real tensors: the proof that a schedule computes its verb."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from devices.algorithms.arithmetic import combine
from devices.algorithms.layout import Chunks
from devices.algorithms.schedule import Copy, Recv, Schedule, Send
from devices.errors import ArgumentError


def replay(schedule: Schedule, chunks: Sequence[Chunks], op: str = "sum") -> None:
    """Run every rank's program on its tensors.

    A message is only carried once both sides have come to it, so a schedule that ends here ends on any transport.

    Args:
        schedule: what to run.
        chunks: each rank's tensors.
        op: how `reduce` combines, on a dtype that `arithmetic.combine` takes.

    Raises:
        ArgumentError: no rank can go on, or a message has a size other than that of its receive.
    """
    ranks = [_Rank(schedule, rank, layout, op) for rank, layout in enumerate(chunks)]
    if len(ranks) != schedule.size:
        raise ArgumentError(f"a replay of {schedule.size} ranks needs the tensors of each, got {len(ranks)}")
    to_look_at = deque(ranks)
    for rank in ranks:
        rank.enter()
    while to_look_at:
        rank = to_look_at.popleft()
        to_look_at.extend(ranks[peer] for peer in rank.settle(ranks))
    waiting = [rank.story() for rank in ranks if not rank.is_done]
    if waiting:
        raise ArgumentError(f"{schedule.verb}: a deadlock; " + "; ".join(waiting))


class _Rank:
    """One rank's place in its program, and what it still waits for there."""

    def __init__(self, schedule: Schedule, rank: int, chunks: Chunks, op: str) -> None:
        self._program = schedule.program(rank)
        self._rank = rank
        self._chunks = chunks
        self._op = op
        self._step = -1
        self._sends: dict[int, deque[Send]] = {}
        self._recvs: dict[int, deque[tuple[int, Recv]]] = {}
        self._landed: dict[int, torch.Tensor] = {}

    @property
    def is_done(self) -> bool:
        return self._step == len(self._program)

    def enter(self) -> None:
        """Go on to the next step that has messages."""
        while self._step < len(self._program):
            self._step += 1
            if self.is_done:
                return
            for place, action in enumerate(self._program[self._step]):
                if isinstance(action, Copy):
                    source, target = self._chunks[action.source], self._chunks[action.target]
                    if action.reduce:
                        combine(self._op, target.clone(), source, target)
                    else:
                        target.copy_(source.clone())
                elif isinstance(action, Send):
                    self._sends.setdefault(action.peer, deque()).append(action)
                else:
                    self._recvs.setdefault(action.peer, deque()).append((place, action))
            if self._sends or self._recvs:
                return

    def settle(self, ranks: Sequence[_Rank]) -> set[int]:
        """Carry what both sides are ready for; return the ranks that may go on by it."""
        touched: set[int] = set()
        for peer in list(self._sends):
            if _carry(self, ranks[peer]):
                touched.add(peer)
        for peer in list(self._recvs):
            if _carry(ranks[peer], self):
                touched.add(peer)
        if not self.is_done and not self._sends and not self._recvs:
            self._combine()
            self.enter()
            touched.add(self._rank)
        return touched

    def _combine(self) -> None:
        for place, action in enumerate(self._program[self._step]):
            if isinstance(action, Recv) and action.reduce:
                target, received = self._chunks[action.chunk], self._landed[place]
                operands = (received, target.clone()) if action.peer < self._rank else (target.clone(), received)
                combine(self._op, *operands, target)
        self._landed.clear()

    def story(self) -> str:
        """Return what the rank waits for, in words."""
        waits = [f"send to rank {peer}" for peer in self._sends] + [f"receive from rank {peer}" for peer in self._recvs]
        return f"rank {self._rank} waits in step {self._step} to {' and to '.join(waits)}"


def _carry(source: _Rank, target: _Rank) -> bool:
    """Carry the messages from one rank to another that both are ready for; return whether there was any."""
    sends, recvs = source._sends.get(target._rank), target._recvs.get(source._rank)
    if not sends or not recvs:
        return False
    while sends and recvs:
        send, (place, recv) = sends.popleft(), recvs.popleft()
        sent, chunk = source._chunks[send.chunk], target._chunks[recv.chunk]
        if sent.numel() != chunk.numel():
            raise ArgumentError(
                f"rank {source._rank} sends {sent.numel()} elements in step {source._step}, which rank {target._rank} "
                f"receives in step {target._step} as {chunk.numel()}"
            )
        if recv.reduce:
            target._landed[place] = sent.clone()
        else:
            chunk.copy_(sent)
    if not sends:
        del source._sends[target._rank]
    if not recvs:
        del target._recvs[source._rank]
    return True
