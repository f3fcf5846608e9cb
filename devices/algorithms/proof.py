"""The proof that a schedule computes its verb: all ranks' programs run here, on numbers that stand for its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import final

import torch

from devices.algorithms.replay import replay
from devices.algorithms.schedule import Schedule
from devices.errors import ArgumentError

IN_PLACE = ("all_reduce", "broadcast", "reduce")
"""Verbs that find their data in the output, which is of one part."""

_ENOUGH = 16
"""So many floats are added up in another order without one of them telling, as good as never."""

Tensor = torch.Tensor


def prove(schedule: Schedule) -> None:
    """Raise unless each rank ends with what the verb says, and a sum has the same bits on all ranks.

    Args:
        schedule: validated.

    Raises:
        ArgumentError: it does not, its ranks wait for each other, or it has no chunks for a part.
    """
    whole = Values(schedule, torch.int64)
    replay(schedule, [_Chunks(whole, rank) for rank in range(schedule.size)])
    whole.check_results()
    if schedule.verb == "all_reduce":
        floats = Values(schedule, torch.float64)
        replay(schedule, [_Chunks(floats, rank) for rank in range(schedule.size)])
        floats.check_bits()


@final
class Values:
    """What stands for the chunks of all ranks: random numbers, the same for the same share of the same data.

    Args:
        schedule: whose.
        dtype: of the numbers.
    """

    def __init__(self, schedule: Schedule, dtype: torch.dtype) -> None:
        self.schedule, self._dtype = schedule, dtype
        self._generator = torch.Generator().manual_seed(0)
        self._given: dict[tuple[int, int, Fraction, Fraction], Tensor] = {}
        self.now: dict[tuple[int, int], Tensor] = {}
        """What a rank's chunk holds, by rank and chunk."""
        parts = 1 if schedule.verb in IN_PLACE else schedule.size
        self._parts = {
            "input": range(0) if schedule.verb in IN_PLACE else range(parts),
            "output": range(parts),
            "scratch": range(0) if schedule.verb == "all_to_all" else range(parts),
        }
        for number, chunk in enumerate(schedule.chunks):
            if chunk.part not in self._parts[chunk.buffer]:
                raise ArgumentError(
                    f"{schedule.verb}: chunk {number} is of part {chunk.part} of the {chunk.buffer}, which the verb "
                    f"over {schedule.size} ranks has not"
                )

    def random(self) -> Tensor:
        if self._dtype is torch.int64:
            return torch.randint(-(2**62), 2**62, (1,), generator=self._generator)
        return torch.randn(_ENOUGH, dtype=self._dtype, generator=self._generator)

    def given(self, rank: int, part: int, number: int) -> Tensor:
        """Return what a rank gives of the share of a part that a chunk has."""
        start, stop, total = self.schedule.extents[number]
        key = rank, part, Fraction(start, total), Fraction(stop, total)
        if key not in self._given:
            self._given[key] = self.random()
        return self._given[key]

    def first(self, rank: int, number: int) -> Tensor:
        """Return what a rank's chunk holds at first."""
        chunk, verb = self.schedule.chunks[number], self.schedule.verb
        is_own = chunk.part == rank
        if (chunk.buffer == "input" and verb == "all_gather" and not is_own) or (
            chunk.buffer == "output" and verb == "reduce_scatter" and not is_own
        ):
            raise ArgumentError(
                f"{verb}: rank {rank} uses chunk {number}, of part {chunk.part} of an {chunk.buffer} of which it has "
                f"part {rank} alone"
            )
        if chunk.buffer == "input" or (chunk.buffer == "output" and verb in IN_PLACE):
            return self.given(rank, chunk.part, number).clone()
        return self.random()

    def check_results(self) -> None:
        """Raise unless each rank's output is what the verb says."""
        schedule = self.schedule
        present = {chunk.part for chunk in schedule.chunks if chunk.buffer == "output"}
        if missing := sorted(set(self._parts["output"]) - present):
            raise ArgumentError(f"{schedule.verb}: no chunk is of part {missing[0]} of the output")
        for rank in range(schedule.size):
            for number, chunk in enumerate(schedule.chunks):
                if chunk.buffer != "output" or (wanted := self._wanted(rank, chunk.part, number)) is None:
                    continue
                if not torch.equal(_Chunks(self, rank)[number], wanted):
                    raise ArgumentError(
                        f"{schedule.verb}: rank {rank} of {schedule.size} ends with wrong data in chunk {number} of "
                        f"the output: the schedule does not compute its verb"
                    )

    def _wanted(self, rank: int, part: int, number: int) -> Tensor | None:
        """Return what is to be in a chunk of a rank's output in the end; None if anything may be."""
        schedule, everyone = self.schedule, range(self.schedule.size)
        match schedule.verb:
            case "all_gather":
                return self.given(part, part, number)
            case "all_to_all":
                return self.given(part, rank, number)
            case "broadcast":
                return self.given(schedule.root or 0, part, number)
            case "reduce" if rank != schedule.root:
                return None
            case "reduce_scatter" if part != rank:
                return None
        total = torch.zeros(1, dtype=torch.int64)
        for each in everyone:
            total += self.given(each, part, number)
        return total

    def check_bits(self) -> None:
        """Raise unless what all ranks end with has the same bits."""
        for number, chunk in enumerate(self.schedule.chunks):
            if chunk.buffer != "output":
                continue
            first, *others = (_Chunks(self, rank)[number] for rank in range(self.schedule.size))
            for rank, other in enumerate(others, 1):
                if not torch.equal(first, other):
                    raise ArgumentError(
                        f"{self.schedule.verb}: ranks 0 and {rank} add chunk {number} up in different orders, so that "
                        "their sums of floats would not have the same bits"
                    )


@final
class _Chunks:
    """One rank's chunks."""

    def __init__(self, values: Values, rank: int) -> None:
        self._values, self._rank = values, rank

    def __getitem__(self, number: int) -> Tensor:
        key = self._rank, number
        if key not in self._values.now:
            self._values.now[key] = self._values.first(self._rank, number)
        return self._values.now[key]


def checked(schedule: Schedule, verbs: Sequence[str]) -> Schedule:
    """Return a schedule if it can be run and is for one of `verbs`.

    Raises:
        ArgumentError: it is not.
    """
    if schedule.verb not in verbs:
        raise ArgumentError(f"a group goes by no schedule for {schedule.verb!r}; it does for {', '.join(verbs)}")
    has_root = schedule.verb in ("broadcast", "reduce")
    if has_root is (schedule.root is None):
        raise ArgumentError(
            f"a schedule for {schedule.verb} has {'a' if has_root else 'no'} root; this one's is {schedule.root}"
        )
    return schedule.validate()
