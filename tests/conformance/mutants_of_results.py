"""Mutants whose verbs give wrong numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from good_backend import HALVES, Arriving, Mail, Tensor, reduced
from mutant import caught_by

# Reductions. Each rank's parts come in rank order.


@caught_by("verbs.all_reduce")
class AllReduceTakesEveryOpForSum(Mail):
    def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
        return super().all_reduce(tensor, "sum")


@caught_by("verbs.reduce")
class ReduceTakesMinForMax(Mail):
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Arriving:
        return super().reduce(tensor, dst, "max" if op == "min" else op)


@caught_by("verbs.reduce_scatter")
class ReduceScatterTakesEveryOpForSum(Mail):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        return super().reduce_scatter(output, input, "sum")


class _Reducing(Mail):
    """Reduces by a method that can be broken."""

    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        parts = [letter.view(own.dtype) for letter in letters]
        parts.insert(self.rank, own.detach())
        target.detach().copy_(self.reduced(op, parts))

    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        return reduced(op, parts)


@caught_by("verbs.all_reduce")
class AllReduceLeavesTheLastElementOut(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        result = super().reduced(op, parts)
        result[-1] = parts[self.rank][-1]
        return result


@caught_by("verbs.all_reduce")
class AllReduceForgetsTheLastRank(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        return super().reduced(op, parts[:-1])


@caught_by("verbs.all_reduce")
class AllReduceIsRightOnTheFirstRankOnly(Mail):
    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        if self.rank == 0:
            super().reduce_into(target, op, letters, own)


@caught_by("verbs.all_reduce", size=4)
class AllReduceKnowsTwoNeighboursOnly(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        return super().reduced(op, parts[:3])


@caught_by("verbs.all_reduce")
class AvgDividesByTheNumberOfPeers(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if op != "avg":
            return super().reduced(op, parts)
        return (super().reduced("sum", parts).double() / max(2, self.size - 1)).to(parts[0].dtype)


@caught_by("verbs.all_reduce")
class AvgDividesByTheSizeOfTheWorld(_Reducing):
    # It takes the highest rank that the group has for the world's last.
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        result = super().reduced(op, parts)
        return result * self.size / (max(self.group.ranks) + 1) if op == "avg" else result


@caught_by("verbs.reduce_scatter")
class ReduceScatterForgetsToDivideTheAvg(_Reducing):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        return super().reduce_scatter(output, input, "sum" if op == "avg" else op)


@caught_by("verbs.all_reduce")
class Bfloat16IsAddedUpInBfloat16(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].dtype is not torch.bfloat16 or op != "sum":
            return super().reduced(op, parts)
        result = parts[0].clone()
        for part in parts[1:]:
            result += part
        return result


@caught_by("verbs.reduce_scatter")
class Float16IsMultipliedInFloat16(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].dtype is not torch.float16 or op != "prod":
            return super().reduced(op, parts)
        result = parts[0].clone()
        for part in parts[1:]:
            result *= part
        return result


@caught_by("verbs.all_reduce")
class Float32IsAddedUpInBfloat16(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].dtype is torch.float32 and op == "sum":
            return super().reduced(op, [part.bfloat16() for part in parts]).float()
        return super().reduced(op, parts)


@caught_by("verbs.all_reduce")
class Float64IsAddedUpInFloat32(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].dtype is torch.float64:
            return super().reduced(op, [part.float() for part in parts]).double()
        return super().reduced(op, parts)


@caught_by("verbs.all_reduce")
class NaNIsLostInMax(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if op != "max" or not parts[0].is_floating_point():
            return super().reduced(op, parts)
        result = parts[0]
        for part in parts[1:]:
            result = torch.fmax(result, part)
        return result


@caught_by("verbs.reduce")
class NaNIsLostInMinIfTheLastRankHasIt(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        result = super().reduced(op, parts)
        if op != "min" or not parts[0].is_floating_point():
            return result
        others = super().reduced(op, parts[:-1])
        return torch.where(parts[-1].isnan(), others, result)


@caught_by("verbs.all_reduce")
class InfinityIsTheLargestNumber(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        result = super().reduced(op, parts)
        if not result.is_floating_point():
            return result
        most = torch.finfo(result.dtype).max
        return torch.where(result.isinf(), result.sign() * most, result)


@caught_by("verbs.all_reduce")
class IntegersDoNotWrap(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if op != "sum" or parts[0].dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32):
            return super().reduced(op, parts)
        least, most = torch.iinfo(parts[0].dtype).min, torch.iinfo(parts[0].dtype).max
        return torch.stack(list(parts)).long().sum(0).clamp(least, most).to(parts[0].dtype)


@caught_by("verbs.all_reduce")
class Int64GoesThroughFloat64(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if op != "sum" or parts[0].dtype is not torch.int64:
            return super().reduced(op, parts)
        return super().reduced(op, [part.double() for part in parts]).long()


@caught_by("verbs.all_reduce")
class UnsignedNumbersAreTakenForSigned(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if op not in ("min", "max") or parts[0].dtype is not torch.uint8:
            return super().reduced(op, parts)
        return super().reduced(op, [part.view(torch.int8) for part in parts]).view(torch.uint8)


@caught_by("verbs.all_reduce")
class ExclusiveOrIsOr(_Reducing):
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        return super().reduced("bor" if op == "bxor" else op, parts)


@caught_by("verbs.all_reduce")
class EachRankAddsUpFromItself(_Reducing):
    # The same numbers but for the last bits, which differ by rank.
    def reduced(self, op: str, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].dtype in HALVES:
            return super().reduced(op, parts)
        return super().reduced(op, [*parts[self.rank :], *parts[: self.rank]])


@caught_by("verbs.reduce")
class ReduceGivesItsResultToRankZero(Mail):
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Arriving:
        return super().reduce(tensor, 0, op)


@caught_by("verbs.reduce")
class ReduceSaysThatItSparesWhatItOverwrites(Mail):
    reduce_spares = True

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Arriving:
        arriving = super().reduce(tensor, dst, op)
        if self.rank != dst:
            tensor.detach().zero_()
        return arriving


@caught_by("verbs.reduce_scatter")
class ReduceScatterGivesTheNeighboursPart(Mail):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        turned = input.detach().view(self.size, -1).roll(1, 0).flatten()
        return super().reduce_scatter(output, turned, op)


@caught_by("verbs.reduce_scatter")
class ReduceScatterReducesInItsInput(Mail):
    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        arriving = super().reduce_scatter(output, input, op)
        part = input.detach().view(self.size, -1)[self.rank]
        finish = arriving.finish
        arriving.finish = lambda letters: (finish(letters), part.copy_(output.detach()))
        return arriving


# What only moves.


@caught_by("verbs.all_gather")
class AllGatherSwapsTwoRanks(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        finish, parts = arriving.finish, output.view(self.size, -1)

        def swap(letters: list[Tensor]) -> None:
            finish(letters)
            parts[:2] = parts[:2].flip(0).clone()

        arriving.finish = swap
        return arriving


@caught_by("verbs.all_gather")
class AllGatherKeepsWhatItOnceGot(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        finish = arriving.finish
        known = self.__dict__.setdefault("known", {})

        def remember(letters: list[Tensor]) -> None:
            finish(letters)
            output.copy_(known.setdefault(output.numel(), output.clone()))

        arriving.finish = remember
        return arriving


@caught_by("verbs.all_gather")
class AllGatherClearsItsInput(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        input.zero_()
        return arriving


@caught_by("verbs.all_gather")
class AllGatherLosesTheSignOfZeros(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        finish = arriving.finish

        def add_zero(letters: list[Tensor]) -> None:
            finish(letters)
            if output.numel() % 4 == 0 and output.storage_offset() % 4 == 0:
                output.view(torch.int32)[output.view(torch.int32) == -(2**31)] = 0

        arriving.finish = add_zero
        return arriving


@caught_by("verbs.all_to_all")
class AllToAllTakesWhatItSendsForWhatComes(Mail):
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        if sum(input_counts) == output.numel():
            output_counts = input_counts
        return super().all_to_all(output, input, output_counts, input_counts)


@caught_by("verbs.all_to_all")
class AllToAllSendsInReverse(Mail):
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        if len({*output_counts, *input_counts}) == 1:
            input = input.view(self.size, -1).flip(0).flatten()
        return super().all_to_all(output, input, output_counts, input_counts)


@caught_by("verbs.all_to_all")
class AllToAllForgetsItsOwnPart(Mail):
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        own = output.split(list(output_counts))[self.rank]
        before = own.clone()
        arriving = super().all_to_all(output, input, output_counts, input_counts)
        own.copy_(before)
        return arriving


@caught_by("verbs.all_to_all", patience=0.5)
class AllToAllSendsNothingOfSizeZero(Mail):
    # But the other side waits for it.
    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        going, coming = input.split(list(input_counts)), output.split(list(output_counts))
        letters = {peer: going[peer] for peer in self.peers if input_counts[peer]}
        names = self.call("all_to_all", letters, self.peers)
        coming[self.rank].copy_(going[self.rank])
        return self.into("all_to_all", {name: coming[peer] for name, peer in zip(names, self.peers, strict=True)})


@caught_by("verbs.broadcast")
class BroadcastIsAlwaysFromRankZero(Mail):
    def broadcast(self, tensor: Tensor, src: int) -> Arriving:
        return super().broadcast(tensor, 0)


@caught_by("verbs.broadcast")
class BroadcastReachesTheNextRankOnly(Mail):
    def broadcast(self, tensor: Tensor, src: int) -> Arriving:
        arriving = super().broadcast(tensor, src)
        if self.rank not in (src, (src + 1) % self.size):
            arriving.finish = lambda _: None
        return arriving


@caught_by("verbs.broadcast")
class BroadcastMakesEachNaNOfOneKind(Mail):
    # It takes all that it carries for numbers.
    def broadcast(self, tensor: Tensor, src: int) -> Arriving:
        arriving = super().broadcast(tensor, src)
        finish = arriving.finish

        def clean(letters: list[Tensor]) -> None:
            finish(letters)
            if tensor.numel() % 4 == 0 and tensor.storage_offset() % 4 == 0:
                tensor.view(torch.float32).nan_to_num_(float("nan"), float("inf"), float("-inf"))

        arriving.finish = clean
        return arriving


@caught_by("verbs.gather")
class GatherComesInReverse(Mail):
    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Arriving:
        arriving = super().gather(output, input, dst)
        finish = arriving.finish

        def turn(letters: list[Tensor]) -> None:
            finish(letters)
            if output is not None:
                output.copy_(output.view(self.size, -1).flip(0).flatten())

        arriving.finish = turn
        return arriving


@caught_by("verbs.gather")
class GatherForgetsTheRootsOwnPart(Mail):
    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Arriving:
        if output is None:
            return super().gather(output, input, dst)
        return super().gather(output, torch.zeros_like(input), dst)


@caught_by("verbs.scatter")
class ScatterBeginsWithTheSecondPart(Mail):
    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Arriving:
        if input is not None:
            input = input.view(self.size, -1).roll(-1, 0).flatten()
        return super().scatter(output, input, src)


@caught_by("verbs.send", patience=4.0)
class LettersAreCutAt64KiB(Mail):
    def into(self, verb: str, targets: dict[str, Tensor]) -> Arriving:
        arriving = super().into(verb, targets)

        def copy(letters: list[Tensor]) -> None:
            for target, letter in zip(targets.values(), letters, strict=True):
                target[: 1 << 16] = letter[: 1 << 16]

        arriving.finish = copy
        return arriving


@caught_by("verbs.permute")
class LettersGoInWholeWords(Mail):
    def into(self, verb: str, targets: dict[str, Tensor]) -> Arriving:
        arriving = super().into(verb, targets)

        def copy(letters: list[Tensor]) -> None:
            for target, letter in zip(targets.values(), letters, strict=True):
                whole = len(letter) // 8 * 8
                target[:whole] = letter[:whole]

        arriving.finish = copy
        return arriving
