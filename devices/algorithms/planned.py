"""A verb by a schedule that was given for it, its data cut into slices that follow each other on their way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast, final

import torch

from devices._backend import Asked, Pending
from devices.algorithms.executor import Spares, run, steps
from devices.algorithms.layout import Layout
from devices.algorithms.lowerings import Lowering
from devices.algorithms.pipeline import Piece
from devices.algorithms.pipeline import run as run_pieces
from devices.algorithms.schedule import Schedule
from devices.algorithms.started import DONE
from devices.algorithms.timing import Times, times
from devices.algorithms.transport import Transport

Tensor = torch.Tensor
Parts = Mapping[int, Tensor]

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce")
"""The verbs that a group may have a schedule for."""

SLICE = 1 << 18
"""The least bytes of a slice: of all the data that the verb moves, as its bound counts them."""

MESSAGE = 1 << 15
"""And so many for each of its chunks: what is smaller costs more than it saves."""

SLICES = 64
"""At most so many are made: by then what the first one waits for hardly counts."""


class RunsSchedules(Protocol):
    """A communicator that runs a schedule in its own way: where its memory is reached, say."""

    def run_schedule(self, schedule: Schedule, chunks: Layout, call: Asked) -> Pending:
        """Start this rank's program, having compared `call`."""
        ...


@final
class Planned:
    """A schedule that a group runs a verb by.

    Args:
        schedule: validated, and proven to compute its verb.
        rank: this rank in the group.
        least: calls that move fewer bytes go another way.
        why: who gave it, and what for, in words.
        seconds_per_byte: what it takes at best, where that is known.
    """

    def __init__(
        self, schedule: Schedule, rank: int, least: int, why: str, seconds_per_byte: float | None = None
    ) -> None:
        self.schedule, self.least, self.why, self.seconds_per_byte = schedule, least, why, seconds_per_byte
        self._times: Times | None = None if schedule.verb == "all_to_all" else times(schedule, rank)
        self.lowering = Lowering(frozenset({"exchange"}), getattr(self, f"_{schedule.verb}"))

    def takes(self, root: int, bytes: int) -> bool:
        """Return whether a call of its verb goes by it; the same on all ranks that make the same call."""
        return bytes >= self.least and (self.schedule.root is None or self.schedule.root == root)

    def __str__(self) -> str:
        schedule = self.schedule
        count = max(len(schedule.program(rank)) for rank in range(schedule.size))
        root = "" if schedule.root is None else f" of root {schedule.root}"
        least = f", for {self.least} bytes and more" if self.least else ""
        return f"a schedule{root} of {count} steps{least}, {self.why}"

    # The verbs, as lowerings have them.

    def _all_reduce(self, on: Transport, tensor: Tensor, op: str) -> None:
        self._run(on, (tensor.numel(),), tensor, {}, {0: tensor}, op)

    def _all_gather(self, on: Transport, output: Tensor, input: Tensor, counts: Sequence[int]) -> None:
        input = _apart(input, output)
        self._run(on, counts, input, {on.rank: input}, _split(output, counts))

    def _reduce_scatter(self, on: Transport, output: Tensor, input: Tensor, op: str, counts: Sequence[int]) -> None:
        into = _apart(output, input)
        self._run(on, counts, input, _split(input, counts), {on.rank: into}, op)
        if into is not output:
            output.copy_(into)

    def _all_to_all(
        self, on: Transport, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> None:
        input = _apart(input, output)
        self._run(on, (), input, _split(input, input_counts), _split(output, output_counts))

    def _broadcast(self, on: Transport, tensor: Tensor, src: int) -> None:
        self._run(on, (tensor.numel(),), tensor, {}, {0: tensor})

    def _reduce(self, on: Transport, tensor: Tensor, dst: int, op: str) -> None:
        self._run(on, (tensor.numel(),), tensor, {}, {0: tensor}, op)

    def _run(
        self, on: Transport, sizes: Sequence[int], like: Tensor, input: Parts, output: Parts, op: str = ""
    ) -> None:
        schedule = self.schedule
        if hasattr(on.communicator, "run_schedule"):
            # What an all_to_all sends differs by rank.
            size = sum(sizes) if sizes else -1
            told = Asked(schedule.verb, like.dtype, size, op, -1 if schedule.root is None else schedule.root)
            chunks = Layout(schedule, sizes, like, input, output)
            cast(RunsSchedules, on.communicator).run_schedule(schedule, chunks, told).wait()
            return
        exchange, count = on.communicator.exchange, self._slices(sum(sizes) * like.element_size())
        if count == 1 or self._times is None:
            run(schedule, on.rank, exchange, Layout(schedule, sizes, like, input, output), op)
            return
        free: Spares = {}

        def pieces(own: Times) -> Iterator[Piece]:
            for at in range(count):
                layout = Layout(
                    schedule,
                    [size * (at + 1) // count - size * at // count for size in sizes],
                    like,
                    _slice(input, at, count),
                    _slice(output, at, count),
                )
                yield _timed(steps(schedule, on.rank, exchange, layout, op, free), own)

        run_pieces(pieces(self._times))

    def _slices(self, bytes: int) -> int:
        """Return how many slices data of so many bytes is cut into: the same on every rank."""
        return min(max(1, bytes // least_slice(self.schedule)), SLICES)


def least_slice(schedule: Schedule) -> int:
    """Return the least bytes that data is cut into slices of."""
    return max(SLICE, MESSAGE * len(schedule.chunks))


@final
class Plans:
    """The schedules that a group has for its verbs, seen from one rank.

    Args:
        made: those that it was opened with.
    """

    def __init__(self, made: Sequence[Planned] = ()) -> None:
        self._made = tuple(made)
        self._given: tuple[Planned, ...] = ()
        self._by_verb: dict[str, list[Planned]] = {}
        self._sort()

    def _sort(self) -> None:
        self._by_verb = {}
        for each in (*self._given, *self._made):
            self._by_verb.setdefault(each.schedule.verb, []).append(each)

    def give(self, planned: Planned | None) -> None:
        """Let a verb go by a schedule that the program gives, in place of an earlier one; with None, by none."""
        if planned is None:
            self._given = ()
        else:
            same = planned.schedule.verb, planned.schedule.root
            others = [each for each in self._given if (each.schedule.verb, each.schedule.root) != same]
            self._given = (planned, *others)
        self._sort()

    @property
    def given(self) -> Sequence[Planned]:
        """Those that the program has given."""
        return self._given

    def of(self, verb: str) -> Sequence[Planned]:
        """Return those for a verb, the first that takes a call being what it goes by."""
        return self._by_verb.get(verb, ())

    def find(self, verb: str, bytes: int, root: int = -1) -> Lowering | None:
        """Return what a call goes by; None if by none of them."""
        for each in self._by_verb.get(verb, ()):
            if each.takes(root, bytes):
                return each.lowering
        return None


def _timed(started: Iterator[Pending | None], own: Times) -> Piece:
    """Take a slice through its steps, each at its time, so that all ranks start messages in one order."""
    now = 0
    for time in own.steps:
        while now < time:
            yield DONE
            now += 1
        pending = next(started)
        yield DONE if pending is None else pending
        now += 1
    next(started, None)
    while now < own.total:
        yield DONE
        now += 1


def _apart(tensor: Tensor, other: Tensor) -> Tensor:
    """Return `tensor`, or a copy if it may lie in the memory of `other`: schedules are proven where none does."""
    return tensor.clone() if tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() else tensor


def _slice(parts: Parts, at: int, count: int) -> Parts:
    """Return of each part the slice `at` of so many."""
    cuts = {number: (part.numel() * at // count, part.numel() * (at + 1) // count) for number, part in parts.items()}
    return {number: part[slice(*cuts[number])] for number, part in parts.items()}


def _split(tensor: Tensor, counts: Sequence[int]) -> Parts:
    return dict(enumerate(tensor.split(list(counts))))
