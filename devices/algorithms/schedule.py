"""A schedule is data: what each rank sends, receives, copies and reduces, step by step, for one verb.

A verb's data is cut into **parts**: one for each rank where every rank has a share (all_gather, reduce_scatter,
gather, scatter, all_to_all), a single one elsewhere. A part lies in a **buffer**: "input", which is only read,
"output", or "scratch", of which each rank has its own. A **chunk** is a share of one part in one buffer: the
chunks of a part, in the order of the schedule's table, split it in proportion to their weights. Verbs that work
in place (all_reduce, broadcast, reduce) find their data in "output".

In one step a rank first makes its copies, in the order listed; then all its messages travel together; then what
was received with `reduce` is combined into its chunk, in the order listed, the lower of the two ranks' data
being the first operand. A step ends when all that is done. The messages from one rank to another arrive in the
order in which they are sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, final

from devices.errors import ArgumentError, did_you_mean

VERBS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter",
    "permute", "barrier",
)  # fmt: skip
"""The verbs that a schedule may be for."""

BUFFERS = ("input", "output", "scratch")


@final
@dataclass(frozen=True, slots=True)
class Chunk:
    """A share of one part of one buffer.

    Args:
        buffer: one of `BUFFERS`.
        part: the number of the part.
        weight: a positive integer; the chunk's share of the part is its weight over that of all the part's chunks.
    """

    buffer: str
    part: int
    weight: int = 1


@final
@dataclass(frozen=True, slots=True)
class Send:
    """Send a chunk to a peer."""

    peer: int
    chunk: int


@final
@dataclass(frozen=True, slots=True)
class Recv:
    """Receive a chunk from a peer, in place of what it held or, with `reduce`, combined with it."""

    peer: int
    chunk: int
    reduce: bool = False


@final
@dataclass(frozen=True, slots=True)
class Copy:
    """Copy one chunk to another or, with `reduce`, combine it into the other, whose data is the first operand."""

    source: int
    target: int
    reduce: bool = False


Action = Send | Recv | Copy
Step = tuple[Action, ...]
Program = tuple[Step, ...]


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """The programs of all ranks of a group for one verb; each is generated when it is first asked for.

    Args:
        verb: one of `VERBS`.
        size: the number of ranks.
        chunks: the table that actions refer to by number, the same on every rank.
        generate: a pure function from a rank to its program.
        root: the source or the destination, for verbs that have one.

    >>> from devices.algorithms import ring
    >>> for step in ring.all_reduce(2).program(0):
    ...     print(step)
    (Send(peer=1, chunk=1), Recv(peer=1, chunk=0, reduce=True))
    (Send(peer=1, chunk=0), Recv(peer=1, chunk=1, reduce=False))
    """

    verb: str
    size: int
    chunks: tuple[Chunk, ...]
    generate: Callable[[int], Program] = field(repr=False)
    root: int | None = None

    @cached_property
    def _programs(self) -> dict[int, Program]:
        return {}

    def program(self, rank: int) -> Program:
        """Return what `rank` does."""
        found = self._programs.get(rank)
        if found is None:
            found = self._programs.setdefault(rank, self.generate(rank))
        return found

    @cached_property
    def extents(self) -> tuple[tuple[int, int, int], ...]:
        """For each chunk, the weights before it, those up to its end, and all those of its part."""
        ends: dict[tuple[str, int], int] = {}
        spans = []
        for chunk in self.chunks:
            place = chunk.buffer, chunk.part
            start = ends.get(place, 0)
            ends[place] = start + chunk.weight
            spans.append((start, ends[place]))
        return tuple((*span, ends[chunk.buffer, chunk.part]) for span, chunk in zip(spans, self.chunks, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        if (self.verb, self.size, self.chunks, self.root) != (other.verb, other.size, other.chunks, other.root):
            return False
        return all(self.program(rank) == other.program(rank) for rank in range(self.size))

    def __hash__(self) -> int:
        return hash((self.verb, self.size, self.chunks, self.root))

    def validate(self) -> Schedule:
        """Return the schedule if it can be run; whether it computes its verb is for `replay` to show.

        Raises:
            ArgumentError: a peer or chunk that does not exist, a peer that is oneself, a write to the input, two
                uses of a chunk in one step that contradict each other, or a send without its receive.
        """
        _check_table(self)
        for rank in range(self.size):
            for number, step in enumerate(self.program(rank)):
                _check_step(self, rank, number, step)
        _check_messages(self)
        return self

    def to_json(self) -> str:
        """Return the schedule, every rank's program included, as JSON."""
        return json.dumps(
            {
                "verb": self.verb,
                "size": self.size,
                "root": self.root,
                "chunks": [[chunk.buffer, chunk.part, chunk.weight] for chunk in self.chunks],
                "programs": [
                    [[_action_to_json(action) for action in step] for step in self.program(rank)]
                    for rank in range(self.size)
                ],
            },
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> Schedule:
        """Return the schedule that `to_json` wrote, validated.

        Raises:
            ArgumentError: it is no schedule, or it cannot be run.
        """
        try:
            data = json.loads(text)
            chunks = tuple(Chunk(*chunk) for chunk in data["chunks"])
            programs = tuple(
                tuple(tuple(_action_from_json(action) for action in step) for step in program)
                for program in data["programs"]
            )
            verb, size, root = data["verb"], data["size"], data["root"]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ArgumentError(f"this JSON is no schedule: {type(error).__name__}: {error}") from error
        if type(size) is not int or len(programs) != size:
            raise ArgumentError(f"a schedule for {size!r} ranks needs as many programs, got {len(programs)}")
        return Schedule(verb, size, chunks, programs.__getitem__, root).validate()


def parts(buffer: str, number: int) -> tuple[Chunk, ...]:
    """Return one chunk for each of `number` parts of a buffer."""
    return tuple(Chunk(buffer, part) for part in range(number))


def _action_to_json(action: Action) -> list[Any]:
    match action:
        case Send(peer, chunk):
            return ["send", peer, chunk]
        case Recv(peer, chunk, reduce):
            return ["recv", peer, chunk, reduce]
        case Copy(source, target, reduce):
            return ["copy", source, target, reduce]


_ACTIONS: dict[str, Callable[..., Action]] = {"send": Send, "recv": Recv, "copy": Copy}


def _action_from_json(data: Any) -> Action:
    kind, *fields = data
    if not all(type(value) is int for value in fields[:2]) or not all(type(value) is bool for value in fields[2:]):
        raise TypeError(f"{data!r} is no action")
    return _ACTIONS[kind](*fields)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _check_table(schedule: Schedule) -> None:
    if schedule.verb not in VERBS:
        raise ArgumentError(f"no verb {schedule.verb!r} to schedule{did_you_mean(str(schedule.verb), VERBS)}")
    if not _is_count(schedule.size) or schedule.size == 0:
        raise ArgumentError(f"a schedule is for at least one rank, got size {schedule.size!r}")
    if schedule.root is not None and not (_is_count(schedule.root) and schedule.root < schedule.size):
        raise ArgumentError(f"root {schedule.root!r} is not among {schedule.size} ranks")
    for number, chunk in enumerate(schedule.chunks):
        if chunk.buffer not in BUFFERS:
            raise ArgumentError(f"chunk {number} lies in {chunk.buffer!r}, which is none of {', '.join(BUFFERS)}")
        if not _is_count(chunk.part):
            raise ArgumentError(f"chunk {number} is of part {chunk.part!r}; parts are numbered from 0")
        if not _is_count(chunk.weight) or chunk.weight == 0:
            raise ArgumentError(f"chunk {number} has weight {chunk.weight!r}; a weight is a positive integer")


def _check_step(schedule: Schedule, rank: int, number: int, step: Step) -> None:
    where = f"{schedule.verb}: rank {rank} of {schedule.size}, step {number}"
    sent, received, combined = set(), set(), set()
    for action in step:
        used = (action.source, action.target) if isinstance(action, Copy) else (action.chunk,)
        for chunk in used:
            if not 0 <= chunk < len(schedule.chunks):
                raise ArgumentError(f"{where}: {action} uses chunk {chunk}, but there are {len(schedule.chunks)}")
        written = None if isinstance(action, Send) else used[-1]
        if written is not None and schedule.chunks[written].buffer == "input":
            raise ArgumentError(f"{where}: {action} writes chunk {written} of the input, which is only read")
        if isinstance(action, Copy):
            if _share(schedule, action.source) != _share(schedule, action.target):
                raise ArgumentError(f"{where}: {action} is between chunks of unequal size")
            continue
        if not 0 <= action.peer < schedule.size:
            raise ArgumentError(f"{where}: {action} has a peer outside of the group's {schedule.size} ranks")
        if action.peer == rank:
            raise ArgumentError(f"{where}: {action} has the rank itself as its peer; use Copy")
        if isinstance(action, Send):
            sent.add(action.chunk)
        elif action.reduce:
            combined.add(action.chunk)
        elif action.chunk in received:
            raise ArgumentError(f"{where}: chunk {action.chunk} is received twice")
        else:
            received.add(action.chunk)
    for chunk in received & (sent | combined):
        raise ArgumentError(f"{where}: chunk {chunk} is received while it is also sent or reduced")


def _messages(schedule: Schedule, rank: int) -> Iterator[tuple[int, Send | Recv]]:
    """Yield the sends and receives of a rank, each with its step."""
    for number, step in enumerate(schedule.program(rank)):
        for action in step:
            if not isinstance(action, Copy):
                yield number, action


def _check_messages(schedule: Schedule) -> None:
    """Match the sends and receives of each pair of ranks, in order."""
    received: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for rank in range(schedule.size):
        for step, action in _messages(schedule, rank):
            if isinstance(action, Recv):
                received.setdefault((action.peer, rank), []).append((step, action.chunk))
    taken: dict[tuple[int, int], int] = {}
    for rank in range(schedule.size):
        for step, action in _messages(schedule, rank):
            if not isinstance(action, Send):
                continue
            peer, chunk = action.peer, action.chunk
            pair = rank, peer
            place = taken.get(pair, 0)
            taken[pair] = place + 1
            what = f"{schedule.verb}: rank {rank} sends chunk {chunk} to rank {peer} in step {step}"
            if place >= len(received.get(pair, ())):
                raise ArgumentError(f"{what}, which has no matching receive")
            other_step, other = received[pair][place]
            if schedule.verb != "all_to_all" and _share(schedule, chunk) != _share(schedule, other):
                raise ArgumentError(
                    f"{what}, which rank {peer} receives in step {other_step} as chunk {other} of another size"
                )
    for (source, rank), messages in received.items():
        place = taken.get((source, rank), 0)
        if place < len(messages):
            step, chunk = messages[place]
            raise ArgumentError(
                f"{schedule.verb}: rank {rank} receives chunk {chunk} from rank {source} in step {step}, "
                "which has no matching send"
            )


def _share(schedule: Schedule, chunk: int) -> tuple[int, Fraction, Fraction]:
    """Return what determines the number of elements of a chunk.

    All of it: where it starts too, since lengths are rounded by the ends. In an all_to_all a part's size depends
    on the buffer and the rank, so that only a run tells.
    """
    start, end, total = schedule.extents[chunk]
    part = 0 if schedule.verb == "all_to_all" else schedule.chunks[chunk].part
    return part, Fraction(start, total), Fraction(end, total)
