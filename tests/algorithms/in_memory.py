"""Communicators between the threads of one process, and a way to run a function on all ranks.

Strict on purpose: a send is done only once it is received, tensors are read when both sides are there, and
collectives called out of order are an error.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from devices._backend import Capabilities, Communicator, Device, Group, Message
from devices.algorithms.verbs import Verbs

T = TypeVar("T")
PATIENCE = 60.0


class Event:
    """A pending verb between threads."""

    def __init__(self, world: World) -> None:
        self._event = threading.Event()
        self._world = world
        world.events.append(self)
        self.error: Exception | None = None

    def set(self, error: Exception | None = None) -> None:
        self.error = self.error or error
        self._event.set()

    def wait(self) -> None:
        if not self._event.wait(PATIENCE):
            raise TimeoutError("nobody came")
        if self.error is not None:
            raise self.error

    def is_completed(self) -> bool:
        return self._event.is_set()


class Events:
    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    def wait(self) -> None:
        for event in self._events:
            event.wait()

    def is_completed(self) -> bool:
        return all(event.is_completed() for event in self._events)


class World:
    """What the ranks share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.events: deque[Event] = deque(maxlen=10_000)
        self.mail: dict[tuple[int, int, int], tuple[deque[Any], deque[Any]]] = {}
        self.meetings: dict[int, dict[int, Any]] = {}
        self.aborted = False

    def post(self, source: int, target: int, tag: int, tensor: torch.Tensor, *, is_send: bool) -> Event:
        event = Event(self)
        with self.lock:
            assert not self.aborted, "aborted"
            sends, recvs = self.mail.setdefault((source, target, tag), (deque(), deque()))
            (sends if is_send else recvs).append((tensor, event))
            while sends and recvs:
                (sent, sender), (received, receiver) = sends.popleft(), recvs.popleft()
                assert sent.numel() == received.numel(), f"{sent.numel()} bytes sent, {received.numel()} expected"
                received.copy_(sent)
                sender.set()
                receiver.set()
        return event

    def meet(self, number: int, rank: int, verb: str, args: Any, do: Callable[[list[Any]], None]) -> Event:
        event = Event(self)
        with self.lock:
            meeting = self.meetings.setdefault(number, {})
            meeting[rank] = (verb, args, event)
            if len(meeting) == self.size:
                error: Exception | None = None
                verbs = {verb for verb, _, _ in meeting.values()}
                try:
                    assert len(verbs) == 1, f"collectives out of order: {verbs}"
                    do([meeting[place][1] for place in range(self.size)])
                except Exception as problem:
                    error = problem
                for _, _, waiting in meeting.values():
                    waiting.set(error)
                del self.meetings[number]
        return event

    def abort(self) -> None:
        with self.lock:
            self.aborted = True
            for event in self.events:
                if not event.is_completed():
                    event.set(ConnectionError("the group was aborted"))


class Base:
    """The bodies of all verbs; the communicators below pick theirs."""

    def __init__(self, world: World, rank: int) -> None:
        self.world = world
        self.rank = rank
        self.called: list[str] = []
        self.closed = 0
        self._number = 0

    def abort(self) -> None:
        self.world.abort()

    def close(self) -> None:
        self.closed += 1

    def _exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Events:
        self.called.append("exchange")
        for message in (*sends, *recvs):
            assert message.tensor.dtype == torch.uint8
            assert message.tensor.ndim == 1
            assert message.tensor.is_contiguous()
        post, rank = self.world.post, self.rank
        return Events(
            [post(rank, message.peer, message.tag, message.tensor, is_send=True) for message in sends]
            + [post(message.peer, rank, message.tag, message.tensor, is_send=False) for message in recvs]
        )

    def _meet(self, verb: str, args: Any, do: Callable[[list[Any]], None]) -> Event:
        self.called.append(verb)
        self._number += 1
        return self.world.meet(self._number, self.rank, verb, args, do)

    def _all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Event:
        assert output.dtype == input.dtype == torch.uint8

        def do(args: list[Any]) -> None:
            everything = torch.cat([input for _, input in args])
            for output, _ in args:
                output.copy_(everything)

        return self._meet("all_gather", (output, input), do)

    def _all_reduce(self, tensor: torch.Tensor, op: str) -> Event:
        self._require(op, tensor)

        def do(args: list[Any]) -> None:
            reduced = natively(op, args)
            for tensor in args:
                tensor.copy_(reduced)

        return self._meet(f"all_reduce {op}", tensor, do)

    def _reduce(self, tensor: torch.Tensor, dst: int, op: str) -> Event:
        self._require(op, tensor)

        def do(args: list[Any]) -> None:
            reduced = natively(op, args)
            for rank, tensor in enumerate(args):
                tensor.copy_(reduced if rank == dst else torch.full_like(tensor, 77))

        return self._meet(f"reduce {op} {dst}", tensor, do)

    def _reduce_scatter(self, output: torch.Tensor, input: torch.Tensor, op: str) -> Event:
        self._require(op, input)
        assert output.dtype == input.dtype

        def do(args: list[Any]) -> None:
            parts = natively(op, [input for _, input in args]).chunk(self.world.size)
            for (output, _), part in zip(args, parts, strict=True):
                output.copy_(part)

        return self._meet(f"reduce_scatter {op}", (output, input), do)

    def _all_to_all(
        self, output: torch.Tensor, input: torch.Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Event:
        assert output.dtype == input.dtype == torch.uint8

        def do(args: list[Any]) -> None:
            split = [input.split(list(counts)) for _, input, _, counts in args]
            for rank, (output, _, counts, _) in enumerate(args):
                received = [parts[rank] for parts in split]
                assert [part.numel() for part in received] == list(counts)
                output.copy_(torch.cat(received))

        return self._meet("all_to_all", (output, input, output_counts, input_counts), do)

    def _broadcast(self, tensor: torch.Tensor, src: int) -> Event:
        assert tensor.dtype == torch.uint8

        def do(args: list[Any]) -> None:
            for tensor in args:
                tensor.copy_(args[src])

        return self._meet(f"broadcast {src}", tensor, do)

    def _gather(self, output: torch.Tensor | None, input: torch.Tensor, dst: int) -> Event:
        assert (output is not None) == (self.rank == dst)

        def do(args: list[Any]) -> None:
            args[dst][0].copy_(torch.cat([input for _, input in args]))

        return self._meet(f"gather {dst}", (output, input), do)

    def _scatter(self, output: torch.Tensor, input: torch.Tensor | None, src: int) -> Event:
        assert (input is not None) == (self.rank == src)

        def do(args: list[Any]) -> None:
            for (output, _), part in zip(args, args[src][1].chunk(self.world.size), strict=True):
                output.copy_(part)

        return self._meet(f"scatter {src}", (output, input), do)

    def _barrier(self) -> Event:
        return self._meet("barrier", None, lambda args: None)

    def _require(self, op: str, tensor: torch.Tensor) -> None:
        declared = CAPABILITIES[type(self)].reductions
        assert tensor.dtype in declared.get(op, ()), f"{op} on {tensor.dtype} was not declared"
        assert tensor.numel()


def natively(op: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(list(tensors))
    if op in ("sum", "prod"):
        return getattr(stacked, op)(0, dtype=stacked.dtype)
    if op == "avg":
        return stacked.mean(0)
    return stacked.amin(0) if op == "min" else stacked.amax(0)


class Point(Base, Communicator):
    """Point-to-point alone."""

    exchange = Base._exchange


class Gather(Base, Communicator):
    """No point-to-point, and reductions of a few dtypes, as an accelerator may have them."""

    all_gather = Base._all_gather
    all_reduce = Base._all_reduce


class Whole(Base, Communicator):
    """Everything."""

    exchange = Base._exchange
    all_gather = Base._all_gather
    all_reduce = Base._all_reduce
    reduce_scatter = Base._reduce_scatter
    all_to_all = Base._all_to_all
    broadcast = Base._broadcast
    reduce = Base._reduce
    gather = Base._gather
    scatter = Base._scatter
    barrier = Base._barrier


class GatherPlus(Base, Communicator):
    """No point-to-point, but a reduce_scatter and an all_to_all."""

    all_gather = Base._all_gather
    all_reduce = Base._all_reduce
    reduce_scatter = Base._reduce_scatter
    all_to_all = Base._all_to_all


_MANY = frozenset(
    {torch.float16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int32, torch.int64, torch.complex64}
)
_ORDERED = _MANY - {torch.complex64}
_FEW = frozenset({torch.float32, torch.int32})
CAPABILITIES: dict[type, Capabilities] = {
    Point: Capabilities(frozenset()),
    Gather: Capabilities(frozenset(), MappingProxyType({"sum": _FEW, "max": _FEW})),
    GatherPlus: Capabilities(frozenset(), MappingProxyType({"sum": _FEW, "max": _FEW, "min": _FEW})),
    Whole: Capabilities(
        frozenset(),
        MappingProxyType(
            {
                "sum": _MANY,
                "prod": _MANY,
                "min": _ORDERED,
                "max": _ORDERED,
                "avg": frozenset({torch.float32, torch.float64}),
            }
        ),
    ),
}
KINDS = (Point, Gather, GatherPlus, Whole)


def group_of(size: int, rank: int, name: str = "test") -> Group:
    store: Any = None  # no communicator here asks for it
    return Group(tuple(range(size)), rank, Device("memory", "cpu", 0), store, timedelta(seconds=PATIENCE), name)


def verbs_of(kind: type, size: int, name: str = "test") -> list[Verbs]:
    """Return the verbs of each rank of a new group."""
    world = World(size)
    capabilities = CAPABILITIES[kind]
    return [Verbs(kind(world, rank), group_of(size, rank, name), capabilities) for rank in range(size)]


def on_all_ranks(kind: type, size: int, function: Callable[[Verbs, int], T], name: str = "test") -> list[T]:
    """Return what `function(verbs, rank)` returns on each rank of a new group, one thread each; close the group."""
    verbs = verbs_of(kind, size, name)
    results: list[Any] = [None] * size
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(verbs[rank], rank)
        except Exception as error:
            errors.append(error)
            verbs[rank].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in verbs:
        one.close()
    if errors:
        raise errors[0]
    return results
