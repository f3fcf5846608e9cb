"""Collectives in which one rank reads all and all read the result: the fewest reads there are.

That is what costs where ranks run one at a time, and what costs least for small data. Each verb is a generator.
The tensors of a verb lie where the program has them; nothing is copied but what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch

from devices.algorithms.arithmetic import combine
from devices.errors import MismatchError
from devices.fabric.interface import Fabric, Raised, Read
from devices.fabric.mark import Mark, check_alike
from devices.fabric.progress import Steps

POSTED, RESULT = 0, 1
"""The lanes that count a rank's collectives: those that it has come to, and those whose result it has."""

Tensor = torch.Tensor


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One rank's call of a collective.

    Args:
        fabric: the group's.
        mark: which call.
    """

    fabric: Fabric
    mark: Mark

    @property
    def others(self) -> list[int]:
        return [peer for peer in range(self.fabric.size) if peer != self.fabric.rank]

    def post(self, tensor: Tensor | None, readers: int) -> Read:
        """Let `readers` peers read `tensor`, and say that this rank has come."""
        name = "posted", self.mark.number
        self.fabric.export(name, tensor, self.mark, readers)
        self.fabric.signal(POSTED, self.mark.number, self.mark)
        return Read(name)

    def come(self) -> None:
        """Say that this rank has come, with nothing to read."""
        self.fabric.signal(POSTED, self.mark.number, self.mark)

    def posted(self, peers: Sequence[int]) -> Raised:
        return Raised(peers, POSTED, self.mark.number)

    def give(self, tensor: Tensor | None) -> Read:
        """Let all others read the result."""
        name = "result", self.mark.number
        self.fabric.export(name, tensor, self.mark, self.fabric.size - 1)
        self.fabric.signal(RESULT, self.mark.number)
        return Read(name)

    def given(self, root: int) -> Raised:
        return Raised((root,), RESULT, self.mark.number)

    def read(self, peer: int, what: str, use: Callable[[Tensor], object] = lambda tensor: None) -> None:
        """Use what a peer has posted or given, its call being the same as ours."""
        name = what, self.mark.number
        try:
            tensor, mark = self.fabric.open(peer, name)
        except LookupError:
            # It has come, but to another verb, in which nobody reads what it has.
            tensor, mark = None, self.fabric.noted(peer, POSTED)
        assert isinstance(mark, Mark)
        check_alike(self.mark, mark)
        if tensor is not None:
            use(tensor)
        self.fabric.close(peer, name)


def all_reduce(call: Call, tensor: Tensor, op: str) -> Steps:
    if call.fabric.rank != 0:
        call.post(tensor, readers=1)
        yield call.given(0)
        call.read(0, "result", tensor.copy_)
        return
    call.come()
    yield call.posted(call.others)
    for peer in call.others:
        call.read(peer, "posted", partial(_add, op, tensor))
    yield call.give(tensor)


def reduce(call: Call, tensor: Tensor, dst: int, op: str) -> Steps:
    if call.fabric.rank != dst:
        yield call.post(tensor, readers=1)
        return
    call.come()
    yield call.posted(call.others)
    # Operands stay in rank order, so the sum of the ranks below comes first.
    below = None
    for peer in range(dst):
        if below is None:
            below = torch.empty_like(tensor)
            call.read(peer, "posted", below.copy_)
        else:
            call.read(peer, "posted", partial(_add, op, below))
    if below is not None:
        combine(op, below, tensor, tensor)
    for peer in range(dst + 1, call.fabric.size):
        call.read(peer, "posted", partial(_add, op, tensor))


def reduce_scatter(call: Call, output: Tensor, input: Tensor, op: str) -> Steps:
    size, rank = call.fabric.size, call.fabric.rank
    if rank != 0:
        call.post(input, readers=1)
        yield call.given(0)
        call.read(0, "result", lambda reduced: output.copy_(reduced.view(size, -1)[rank]))
        return
    call.come()
    yield call.posted(call.others)
    reduced = input.clone()
    for peer in call.others:
        call.read(peer, "posted", partial(_add, op, reduced))
    output.copy_(reduced.view(size, -1)[0])
    yield call.give(reduced)


def all_gather(call: Call, output: Tensor, input: Tensor) -> Steps:
    if call.fabric.rank != 0:
        call.post(input, readers=1)
        yield call.given(0)
        call.read(0, "result", output.copy_)
        return
    call.come()
    yield call.posted(call.others)
    yield from _gathered(call, output, input)
    yield call.give(output)


def gather(call: Call, output: Tensor | None, input: Tensor, dst: int) -> Steps:
    if output is None:
        yield call.post(input, readers=1)
        return
    call.come()
    yield call.posted(call.others)
    yield from _gathered(call, output, input)


def _gathered(call: Call, output: Tensor, input: Tensor) -> Steps:
    rows = output.view(call.fabric.size, -1)
    rows[call.fabric.rank].copy_(input)
    for peer in call.others:
        call.read(peer, "posted", rows[peer].copy_)
    yield from ()


def broadcast(call: Call, tensor: Tensor, src: int) -> Steps:
    if call.fabric.rank == src:
        yield call.post(tensor, readers=call.fabric.size - 1)
        return
    call.come()
    yield call.posted((src,))
    call.read(src, "posted", tensor.copy_)


def scatter(call: Call, output: Tensor, input: Tensor | None, src: int) -> Steps:
    size, rank = call.fabric.size, call.fabric.rank
    if input is not None:
        output.copy_(input.view(size, -1)[rank])
        yield call.post(input, readers=size - 1)
        return
    call.come()
    yield call.posted((src,))
    call.read(src, "posted", lambda data: output.copy_(data.view(size, -1)[rank]))


def all_to_all(call: Call, output: Tensor, input: Tensor, output_counts: Sequence[int], starts: Tensor) -> Steps:
    """Exchange parts: `starts` says, to whoever reads it, where each rank's part of `input` begins."""
    fabric, rank = call.fabric, call.fabric.rank
    name = "starts", call.mark.number
    fabric.export(name, starts, call.mark, fabric.size - 1)
    sent = call.post(input, fabric.size - 1)
    yield call.posted(call.others)
    for peer, part in enumerate(output.split(list(output_counts))):
        if peer == rank:
            part.copy_(input[starts[rank] : starts[rank + 1]])
            continue
        where, _ = fabric.open(peer, name)
        assert where is not None
        begin, end = where[rank : rank + 2].tolist()
        fabric.close(peer, name)
        if end - begin != part.numel():
            raise MismatchError(
                f"rank {rank}: {call.mark}: rank {peer} sends {end - begin} bytes to this rank, which expects "
                f"{part.numel()} ({call.mark.line})"
            )
        call.read(peer, "posted", partial(_copy_slice, part, begin, end))
    yield sent


def barrier(call: Call) -> Steps:
    if call.fabric.rank != 0:
        call.post(None, readers=1)
        yield call.given(0)
        call.read(0, "result")
        return
    call.come()
    yield call.posted(call.others)
    for peer in call.others:
        call.read(peer, "posted")
    yield call.give(None)


def _add(op: str, reduced: Tensor, data: Tensor) -> None:
    combine(op, reduced, data, reduced)


def _copy_slice(part: Tensor, begin: int, end: int, data: Tensor) -> None:
    part.copy_(data[begin:end])
