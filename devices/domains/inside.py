"""One domain's own collectives, as a composed group uses them; of a domain of one rank they are copies."""

from __future__ import annotations

from typing import final

import torch

from devices._backend import Asked, Communicator

Tensor = torch.Tensor


@final
class Inside:
    """The domain that this rank is in. All tensors are flat and contiguous; each verb is done when it returns.

    Args:
        communicator: the domain's own; None where this rank is alone in it.
        place: this rank's place in the domain.
        size: the number of its ranks.
    """

    def __init__(self, communicator: Communicator | None, place: int, size: int) -> None:
        self.communicator = communicator
        self.place, self.size = place, size

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> None:
        """Fill `output` with this rank's part of the reduction of all `input`s."""
        if self.communicator is None:
            output.copy_(input)
        else:
            self.communicator.reduce_scatter(output, input, op).wait()

    def all_gather(self, output: Tensor, input: Tensor) -> None:
        """Fill `output` with all ranks' `input`s; they may be dtypes of any kind, which only move."""
        if self.communicator is None:
            output.copy_(input)
        else:
            self.communicator.all_gather(output.view(torch.uint8), input.view(torch.uint8)).wait()

    def broadcast(self, tensor: Tensor, place: int) -> None:
        """Replace `tensor` by that of the rank at `place`."""
        if self.communicator is not None:
            self.communicator.broadcast(tensor.view(torch.uint8), place).wait()

    def barrier(self) -> None:
        """Return once all ranks of the domain have come."""
        if self.communicator is not None:
            self.communicator.barrier().wait()

    def agree(self, call: Asked) -> None:
        """Compare the call that the ranks of the domain make, where its communicator can."""
        if self.communicator is not None:
            self.communicator.expect(call)
            self.communicator.agree()
