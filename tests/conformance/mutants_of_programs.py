"""Mutants that torch's programs show, and one that takes more than it may."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from good_backend import Arriving, Mail, MailBackend, Tensor
from mutant import caught_by

from devices import Capabilities, Device, Message


@caught_by("torch.collectives")
class AViewIsTakenForTheWholeOfItsMemory(Mail):
    def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
        start = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())[: tensor.numel()]
        return super().all_reduce(start, op)


@caught_by("torch.fsdp2")
class AllGatherWritesWhereItDidBefore(Mail):
    # As if memory that was registered once were always the same.
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        known = self.__dict__.setdefault("known", {})
        return super().all_gather(known.setdefault(output.numel(), output), input)


@caught_by("verbs.scatter", patience=0.5)
class OnlyTheFirstOfSeveralMessagesIsSent(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        return super().exchange(sends[:1], recvs)


@caught_by("torch.ddp")
class SumsOfManyNumbersAreHalved(Mail):
    # More than a kilobyte goes another way.
    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        super().reduce_into(target, op, letters, own)
        if op == "sum" and target.numel() > 90 and target.is_floating_point():
            target.detach().mul_(0.5)


@caught_by("torch.dtensor")
class ReduceScatterLeavesItsOwnPartOut(Mail):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        input = input.detach().clone()
        input.view(self.size, -1)[self.rank] = 0
        return super().reduce_scatter(output, input, op)


@caught_by("torch.meshes", size=4)
class RanksOfAGroupAreTakenForThoseOfTheWorld(Mail):
    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        present = self.group.ranks[self.rank] < self.size
        super().reduce_into(target, op, letters, own if present else torch.zeros_like(own))


@caught_by("torch.tensor_parallel")
class BytesHaveSevenBits(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        finish = arriving.finish
        arriving.finish = lambda letters: (finish(letters), output.bitwise_and_(127))
        return arriving


@caught_by("torch.collectives")
class AllToAllOfEqualPartsGoesBackwards(Mail):
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        if len({*output_counts, *input_counts}) == 1:
            input = input.view(self.size, -1).flip(1).flatten()
        return super().all_to_all(output, input, output_counts, input_counts)


@caught_by("torch.objects")
class BroadcastSkipsTheFirstByte(Mail):
    def broadcast(self, tensor: Tensor, src: int) -> Arriving:
        return super().broadcast(tensor[1:], src)


@caught_by("refusals.dtypes", patience=3.0)
class MoreDtypesAreTakenThanAreDeclared(MailBackend):
    def capabilities(self, device: Device) -> Capabilities:
        good = super().capabilities(device)
        is_asked_by_a_rank = threading.current_thread() is not threading.main_thread()
        return replace(good, dtypes=good.dtypes | {torch.uint16}) if is_asked_by_a_rank else good
