"""One domain's own collectives, as a composed group uses them; of a domain of one rank they are copies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch

from devices._backend import Asked, Communicator

Tensor = torch.Tensor


@final
class Inside:
    """The domain that this rank is in. All tensors are flat and contiguous; each verb is done when it returns.

    The ranks' parts of a tensor lie one after the other. Where they are not equal they are made so for the domain's
    own verbs, which take no others: what that costs is memory's time, of which there is more than of the way across.

    Args:
        communicator: the domain's own; None where this rank is alone in it.
        place: this rank's place in the domain.
        size: the number of its ranks.
        host: carries all ranks of the group, where what carries the domain may not compare calls, and a barrier costs
            less on the host.
        compares_all: whether `agree` compares the calls of all ranks of the group, and not of the domain's alone.
    """

    def __init__(
        self,
        communicator: Communicator | None,
        place: int,
        size: int,
        host: Communicator | None = None,
        *,
        compares_all: bool = False,
    ) -> None:
        self.communicator = communicator
        self._host = communicator if host is None else host
        self.compares_all = compares_all
        self.place, self.size = place, size

    def reduce_scatter(self, input: Tensor, cuts: Sequence[int], op: str) -> Tensor:
        """Return this rank's part of the reduction of all `input`s, in memory of its own.

        Args:
            input: of all ranks' parts.
            cuts: where those begin, and where the last one ends.
            op: how.
        """
        own = cuts[self.place + 1] - cuts[self.place]
        if self.communicator is None:
            return input.clone()
        longest, rows = _longest(cuts), input
        if longest * self.size != input.numel():
            rows = input.new_empty(self.size * longest)
            for row, (start, stop) in zip(rows.view(self.size, longest), pairwise(cuts), strict=True):
                row[: stop - start].copy_(input[start:stop])
                row[stop - start :].zero_()
        output = input.new_empty(longest)
        self.communicator.reduce_scatter(output, rows, op).wait()
        return output[:own]

    def all_gather(self, output: Tensor, cuts: Sequence[int], part: Tensor) -> None:
        """Fill `output` with all ranks' parts, which lie in it as `cuts` say; of any dtype, for they only move."""
        if self.communicator is None:
            output.copy_(part)
            return
        longest = _longest(cuts)
        if longest * self.size == output.numel():
            self.communicator.all_gather(output.view(torch.uint8), part.view(torch.uint8)).wait()
            return
        padded, rows = part.new_empty(longest), part.new_empty(self.size * longest)
        padded[: part.numel()].copy_(part)
        self.communicator.all_gather(rows.view(torch.uint8), padded.view(torch.uint8)).wait()
        for row, (start, stop) in zip(rows.view(self.size, longest), pairwise(cuts), strict=True):
            output[start:stop].copy_(row[: stop - start])

    def broadcast(self, tensor: Tensor, place: int) -> None:
        """Replace `tensor` by that of the rank at `place`."""
        if self.communicator is not None:
            self.communicator.broadcast(tensor.view(torch.uint8), place).wait()

    def barrier(self) -> None:
        """Return once all ranks of the domain have come."""
        if self._host is not None:
            self._host.barrier().wait()

    def agree(self, call: Asked) -> None:
        """Compare the call that the ranks of the domain make, where its communicator can."""
        if self._host is not None:
            self._host.expect(call)
            self._host.agree()


def compares(communicator: Communicator) -> bool:
    """Return whether a communicator compares the ranks' calls."""
    return type(communicator).expect is not Communicator.expect


def _longest(cuts: Sequence[int]) -> int:
    return max(stop - start for start, stop in pairwise(cuts))
