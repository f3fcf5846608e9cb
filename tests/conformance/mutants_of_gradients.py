"""Mutants that are right until backward, which calls the verbs from elsewhere and with other tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from good_backend import Arriving, Mail, Tensor
from mutant import caught_by

from devices import Message


def in_backward() -> bool:
    return torch._C._current_autograd_node() is not None


@caught_by("gradients.all_reduce")
class BackwardOfAllReduceIsDropped(Mail):
    def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
        return Arriving(self, "all_reduce", []) if in_backward() else super().all_reduce(tensor, op)


@caught_by("gradients.all_gather")
class BackwardAveragesWhereItIsToAddUp(Mail):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        return super().reduce_scatter(output, input, "avg" if in_backward() and op == "sum" else op)


@caught_by("gradients.all_to_all")
class BackwardOfAllToAllGoesTheSameWayAgain(Mail):
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        if not in_backward():
            return super().all_to_all(output, input, output_counts, input_counts)
        if len({*output_counts, *input_counts}) == 1:
            input = input.view(self.size, -1).roll(1, 0).flatten()
        return super().all_to_all(output, input, output_counts, input_counts)


@caught_by("gradients.reduce_scatter")
class BackwardGathersItsOwnPartOnly(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        if in_backward():
            arriving.finish = lambda _: None
            output.zero_()
            output.view(self.size, -1)[self.rank] = input
        return arriving


@caught_by("gradients.broadcast")
class BackwardOfABroadcastStaysWhereItIs(Mail):
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Arriving:
        return Arriving(self, "reduce", []) if in_backward() else super().reduce(tensor, dst, op)


@caught_by("gradients.scatter")
class BackwardOfAScatterGathersInReverse(Mail):
    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Arriving:
        arriving = super().gather(output, input, dst)
        finish = arriving.finish

        def turn(letters: list[Tensor]) -> None:
            finish(letters)
            if output is not None and in_backward():
                output.copy_(output.view(self.size, -1).flip(0).flatten())

        arriving.finish = turn
        return arriving


@caught_by("gradients.permute")
class BackwardOfAPermuteArrivesEmpty(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        arriving = super().exchange(sends, recvs)
        if in_backward():
            finish = arriving.finish

            def clear(letters: list[Tensor]) -> None:
                finish(letters)
                for message in recvs:
                    message.tensor.zero_()

            arriving.finish = clear
        return arriving
