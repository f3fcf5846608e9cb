"""A backend that keeps every law, and shares nothing with ours: each verb is letters to the peers, sent at once.

It has all verbs of its own, so that each can be broken: `mutants.py`.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from posts import Folder, Hall, Post

from devices import Backend, Capabilities, Communicator, Device, Group, Link, Message, Probe

Tensor = torch.Tensor

INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
HALVES = frozenset({torch.float16, torch.bfloat16})
REALS = HALVES | {torch.float32, torch.float64}
MOVED = frozenset({torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2})

_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "avg": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "prod": torch.mul,
    "band": torch.bitwise_and,
    "bor": torch.bitwise_or,
    "bxor": torch.bitwise_xor,
}


def reduced(op: str, parts: Sequence[Tensor]) -> Tensor:
    """Return the reduction of one part of each rank, in rank order; 16-bit floats are rounded once."""
    dtype = parts[0].dtype
    wide = [part.float() for part in parts] if dtype in HALVES else parts
    result = functools.reduce(_COMBINE[op], wide)
    return (result / len(parts) if op == "avg" else result).to(dtype)


class Arriving:
    """A verb whose letters are still to come."""

    def __init__(
        self, mail: Mail, verb: str, names: Sequence[str], finish: Callable[[list[Tensor]], object] = lambda _: None
    ) -> None:
        self.mail, self.verb, self.names, self.finish = mail, verb, names, finish
        self.deadline = mail.deadline()
        self.lock = threading.Lock()
        self.is_done = False
        self.error: Exception | None = None

    def wait(self) -> None:
        with self.lock:
            if self.error is not None:
                raise self.error
            if not self.is_done:
                try:
                    self.finish(self.mail.await_letters(self.verb, self.names, self.deadline))
                except Exception as error:
                    self.error = error
                    raise
                self.is_done = True

    def is_completed(self) -> bool:
        is_over = self.is_done or self.error is not None or self.mail.is_aborted or self.mail.is_closed
        return is_over or all(self.mail.post.has(name) for name in self.names)


class ArrivingFromAny:
    """A letter whose sender is not known yet."""

    def __init__(self, mail: Mail, tensor: Tensor, tag: int) -> None:
        self.mail, self.tensor, self.tag = mail, tensor, tag
        self.arriving: Arriving | None = None
        self.sender = -1

    def is_completed(self) -> bool:
        return self.arriving is not None or any(self.mail.post.has(name) for name in self.mail.next_from_any(self.tag))

    def wait(self) -> None:
        deadline = self.mail.deadline()
        while self.arriving is None:
            with self.mail.lock:
                for name, sender in self.mail.next_from_any(self.tag).items():
                    if self.mail.post.has(name):
                        self.mail.ticket(sender, self.mail.rank, self.tag)
                        self.sender = sender
                        self.arriving = self.mail.into("recv_any", {name: self.tensor})
                        break
            if self.arriving is None:
                self.mail.rest("recv_any", deadline)
        self.arriving.wait()

    def source(self) -> int:
        return self.sender


class Mail(Communicator):
    """Carries every verb by letters: those that it sends go at once, those that it expects are read in `wait`."""

    arriving: ClassVar[type[Arriving]] = Arriving

    def __init__(self, group: Group, post: Post) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size
        self.post = post
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.tickets: dict[tuple[int, int, int], int] = defaultdict(int)
        self.calls = itertools.count()
        self.is_aborted = self.is_closed = False

    # Letters.

    def ticket(self, source: int, to: int, tag: int) -> str:
        """Return the name of the next message from a rank to another with one tag."""
        with self.lock:
            number = self.tickets[source, to, tag]
            self.tickets[source, to, tag] = number + 1
        return f"{source} {tag} {number}"

    def next_from_any(self, tag: int) -> dict[str, int]:
        """Return the names that the next message with that tag may have, and from whom it would be."""
        return {f"{peer} {tag} {self.tickets[peer, self.rank, tag]}": peer for peer in self.peers}

    @property
    def peers(self) -> list[int]:
        return [peer for peer in range(self.size) if peer != self.rank]

    def deadline(self) -> float:
        return time.monotonic() + self.group.timeout.total_seconds()

    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        found = []
        for name in names:
            while not self.post.has(name):
                self.rest(verb, deadline, int(name.split()[0]), name)
            found.append(self.post.take(name))
        return found

    def rest(self, verb: str, deadline: float, peer: int | None = None, name: str = "") -> None:
        """Let a moment pass, unless there is no sense in waiting any more."""
        if self.is_aborted:
            raise RuntimeError(f"{self.group}: the group was aborted, {verb} with it")
        if self.is_closed:
            raise RuntimeError(f"{self.group}: the group was closed, {verb} was waiting")
        if time.monotonic() > deadline:
            who = "any rank" if peer is None else f"rank {peer}"
            raise TimeoutError(f"{self.group}: nothing came from {who} within {self.group.timeout}")
        # What it sent before it went is there by now.
        if peer is not None and not self.post.is_alive(peer) and not self.post.has(name):
            raise RuntimeError(f"{self.group}: rank {peer} is dead or has left, and {verb} waits for it")
        self.post.pause()

    def check(self, verb: str) -> None:
        if self.is_closed or self.is_aborted:
            raise RuntimeError(f"{self.group}: {verb} after the group was {'closed' if self.is_closed else 'aborted'}")
        if os.getpid() != self.process:
            raise RuntimeError(f"{self.group}: {verb} in a process forked from the one that opened the group")

    def into(self, verb: str, targets: Mapping[str, Tensor]) -> Arriving:
        """Return what copies letters to where they belong."""

        def copy(letters: list[Tensor]) -> None:
            for (name, target), letter in zip(targets.items(), letters, strict=True):
                if letter.numel() != target.numel():
                    raise RuntimeError(f"{self.group}: {letter.numel()} bytes came as {name}, not {target.numel()}")
                target.copy_(letter)

        return self.arriving(self, verb, list(targets), copy)

    def call(self, verb: str, letters: Mapping[int, Tensor], sources: Iterable[int]) -> list[str]:
        """Send the letters of a verb that all ranks call; return the names of those that come from `sources`."""
        self.check(verb)
        with self.lock:
            number = next(self.calls)
        for to, letter in letters.items():
            self.post.put(to, f"{self.rank} {verb} {number}", letter.detach().view(torch.uint8))
        return [f"{source} {verb} {number}" for source in sources]

    # Verbs.

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        self.check("exchange")
        for message in sends:
            self.post.put(message.peer, self.ticket(self.rank, message.peer, message.tag), message.tensor)
        return self.into("exchange", {self.ticket(to.peer, self.rank, to.tag): to.tensor for to in recvs})

    def recv_any(self, tensor: Tensor, tag: int) -> ArrivingFromAny:
        self.check("recv_any")
        return ArrivingFromAny(self, tensor, tag)

    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        parts = output.view(self.size, -1)
        names = self.call("all_gather", dict.fromkeys(self.peers, input), self.peers)
        parts[self.rank].copy_(input)
        return self.into("all_gather", dict(zip(names, (parts[peer] for peer in self.peers), strict=True)))

    def all_reduce(self, tensor: Tensor, op: str) -> Arriving:
        names = self.call("all_reduce", dict.fromkeys(self.peers, tensor), self.peers)
        return self.arriving(self, "all_reduce", names, lambda letters: self.reduce_into(tensor, op, letters, tensor))

    def reduce_into(self, target: Tensor, op: str, letters: Sequence[Tensor], own: Tensor) -> None:
        """Fill `target` with the reduction of the peers' letters and this rank's own part."""
        parts = [letter.view(own.dtype) for letter in letters]
        parts.insert(self.rank, own.detach())
        target.detach().copy_(reduced(op, parts))

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Arriving:
        parts = input.detach().view(self.size, -1)
        names = self.call("reduce_scatter", {peer: parts[peer] for peer in self.peers}, self.peers)
        own = parts[self.rank].clone()
        return self.arriving(self, "reduce_scatter", names, lambda letters: self.reduce_into(output, op, letters, own))

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Arriving:
        going, coming = input.split(list(input_counts)), output.split(list(output_counts))
        names = self.call("all_to_all", {peer: going[peer] for peer in self.peers}, self.peers)
        coming[self.rank].copy_(going[self.rank])
        return self.into("all_to_all", {name: coming[peer] for name, peer in zip(names, self.peers, strict=True)})

    def broadcast(self, tensor: Tensor, src: int) -> Arriving:
        if self.rank == src:
            self.call("broadcast", dict.fromkeys(self.peers, tensor), [])
            return self.into("broadcast", {})
        [name] = self.call("broadcast", {}, [src])
        return self.into("broadcast", {name: tensor})

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Arriving:
        if self.rank != dst:
            self.call("reduce", {dst: tensor}, [])
            return self.arriving(self, "reduce", [])
        names = self.call("reduce", {}, self.peers)
        return self.arriving(self, "reduce", names, lambda letters: self.reduce_into(tensor, op, letters, tensor))

    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Arriving:
        if output is None:
            self.call("gather", {dst: input}, [])
            return self.arriving(self, "gather", [])
        parts = output.view(self.size, -1)
        names = self.call("gather", {}, self.peers)
        parts[self.rank].copy_(input)
        return self.into("gather", dict(zip(names, (parts[peer] for peer in self.peers), strict=True)))

    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Arriving:
        if input is None:
            [name] = self.call("scatter", {}, [src])
            return self.into("scatter", {name: output})
        parts = input.view(self.size, -1)
        self.call("scatter", {peer: parts[peer] for peer in self.peers}, [])
        output.copy_(parts[self.rank])
        return self.arriving(self, "scatter", [])

    def barrier(self) -> Arriving:
        nothing = torch.empty(0, dtype=torch.uint8)
        return self.arriving(self, "barrier", self.call("barrier", dict.fromkeys(self.peers, nothing), self.peers))

    def abort(self) -> None:
        self.is_aborted = True
        self.post.wake()

    def close(self) -> None:
        was_closed, self.is_closed = self.is_closed, True
        if not was_closed and os.getpid() == self.process:
            self.post.close()


class MailBackend(Backend):
    """The good one, whose ranks are threads."""

    name = "mail"
    device_type = "cpu"
    priority = None
    verified = "runs on every machine"
    thread_ranks = True
    post: ClassVar[type[Post]] = Hall
    communicator: ClassVar[type[Mail]] = Mail
    count: ClassVar[int] = 4

    def probe(self) -> Probe:
        return Probe(present=True, reason="every machine has a post")

    def devices(self) -> Sequence[Device]:
        return [Device(self.name, "cpu", index, "a desk", 1 << 30, 1 << 29) for index in range(self.count)]

    def capabilities(self, device: Device) -> Capabilities:
        others = (other for other in self.devices() if other.index != device.index)
        return Capabilities(
            dtypes=INTEGERS | REALS | MOVED,
            reductions={
                **dict.fromkeys(("sum", "prod", "min", "max"), INTEGERS | REALS),
                **dict.fromkeys(("band", "bor", "bxor"), INTEGERS),
                "avg": REALS,
            },
            links=tuple(Link(str(other), "a corridor", 1e9, 1e-5) for other in others),
        )

    def open(self, group: Group) -> Communicator:
        return self.communicator(group, self.post(group))


class FolderBackend(MailBackend):
    """The good one, whose ranks are processes."""

    name = "mail_by_folder"
    thread_ranks = False
    post = Folder
