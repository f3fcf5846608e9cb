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
from devices.fabric.mark import Mark, check_alike, difference
from devices.fabric.progress import Steps

POSTED, RESULT = 0, 1
"""The lanes that count a rank's collectives: those that it has come to, and those whose result it has."""

Tensor = torch.Tensor


@final
class Results:
    """Tells peers which results this rank has to give. Their lane counts up, so it does in the order of the calls.

    Of two calls on their way the later may be through first: when it began, all its peers had come, and this rank has
    not looked at the earlier one since.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._promised: list[int] = []
        self._given = self._told = 0

    def promise(self, number: int) -> None:
        """Say that call `number`, the latest, will have a result."""
        self._promised.append(number)

    def give(self, number: int) -> None:
        """Say that it is there."""
        self._promised.remove(number)
        self._given = max(self._given, number)
        ready = min(self._promised) - 1 if self._promised else self._given
        if ready > self._told:
            self._told = ready
            self._fabric.signal(RESULT, ready)


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One rank's call of a collective.

    Args:
        fabric: the group's.
        mark: which call.
        results: those that this rank gives in the group.
    """

    fabric: Fabric
    mark: Mark
    results: Results

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

    def check_unchanged(self) -> None:
        """Raise if what this rank posted, for itself alone, was changed since; of the others' `read` tells."""
        self.read(self.fabric.rank, "posted")

    def posted(self, peers: Sequence[int]) -> Raised:
        return Raised(peers, POSTED, self.mark.number)

    def give(self, tensor: Tensor | None) -> Read:
        """Let all others read the result."""
        name = "result", self.mark.number
        self.fabric.export(name, tensor, self.mark, self.fabric.size - 1)
        self.results.give(self.mark.number)
        return Read(name)

    def given(self, root: int) -> Raised:
        return Raised((root,), RESULT, self.mark.number)

    def read(self, peer: int, what: str, use: Callable[[Tensor], object] = lambda tensor: None) -> Mark:
        """Use what a rank has posted or given, its call being the same as ours; return that call."""
        name = what, self.mark.number
        try:
            tensor, mark = self.fabric.open(peer, name)
        except LookupError:
            raise self._mismatch(peer) from None
        assert isinstance(mark, Mark)
        check_alike(self.mark, mark)
        if tensor is not None:
            use(tensor)
        self.fabric.close(peer, name)
        return mark

    def _mismatch(self, peer: int) -> MismatchError:
        """Return the error for a peer that has come, but to another verb, in which nobody reads what it has."""
        mine, other = self.mark, self.fabric.noted(peer, POSTED, self.mark.number)
        said = difference({mine.rank: mine, other.rank: other}) if isinstance(other, Mark) else None
        said = said or f"rank {peer} of the group made another as call {mine.number}, and others since ({mine.line})"
        return MismatchError(f"rank {mine.rank}: {mine}: {said}")


def all_reduce(call: Call, tensor: Tensor, op: str) -> Steps:
    if call.fabric.rank != 0:
        call.post(tensor, readers=1)
        yield call.given(0)
        call.read(0, "result", tensor.copy_)
        return
    call.results.promise(call.mark.number)
    call.post(tensor, readers=1)
    yield call.posted(call.others)
    call.check_unchanged()
    for peer in call.others:
        call.read(peer, "posted", partial(_add, op, tensor))
    yield call.give(tensor)


def reduce(call: Call, tensor: Tensor, dst: int, op: str) -> Steps:
    if call.fabric.rank != dst:
        yield call.post(tensor, readers=1)
        return
    call.post(tensor, readers=1)
    yield call.posted(call.others)
    call.check_unchanged()
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
    call.results.promise(call.mark.number)
    call.post(input, readers=1)
    yield call.posted(call.others)
    call.check_unchanged()
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
    call.results.promise(call.mark.number)
    call.post(input, readers=1)
    yield call.posted(call.others)
    yield from _gathered(call, output, input)
    yield call.give(output)


def gather(call: Call, output: Tensor | None, input: Tensor, dst: int) -> Steps:
    if output is None:
        yield call.post(input, readers=1)
        return
    call.post(input, readers=1)
    yield call.posted(call.others)
    yield from _gathered(call, output, input)


def _gathered(call: Call, output: Tensor, input: Tensor) -> Steps:
    rows = output.view(call.fabric.size, -1)
    call.check_unchanged()
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
    fabric.export(("starts", call.mark.number), starts, call.mark, fabric.size - 1)
    sent = call.post(input, fabric.size - 1)
    yield call.posted(call.others)
    for peer, part in enumerate(output.split(list(output_counts))):
        if peer == rank:
            part.copy_(input[starts[rank] : starts[rank + 1]])
            continue
        span = torch.empty(2, dtype=torch.int64)
        theirs = call.read(peer, "starts", partial(_copy_slice, span, rank, rank + 2))
        begin, end = span.tolist()
        if end - begin != part.numel():
            raise MismatchError(
                f"rank {call.mark.rank}: {call.mark}: rank {theirs.rank} sends {end - begin} bytes to this rank "
                f"({theirs.line}), which expects {part.numel()} ({call.mark.line})"
            )
        call.read(peer, "posted", partial(_copy_slice, part, begin, end))
    yield sent


def barrier(call: Call) -> Steps:
    if call.fabric.rank != 0:
        call.post(None, readers=1)
        yield call.given(0)
        call.read(0, "result")
        return
    call.results.promise(call.mark.number)
    call.come()
    yield call.posted(call.others)
    for peer in call.others:
        call.read(peer, "posted")
    yield call.give(None)


def _add(op: str, reduced: Tensor, data: Tensor) -> None:
    combine(op, reduced, data, reduced)


def _copy_slice(part: Tensor, begin: int, end: int, data: Tensor) -> None:
    part.copy_(data[begin:end])
