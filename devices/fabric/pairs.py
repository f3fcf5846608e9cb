"""Messages between two ranks over a fabric: each is read where it lies, and its sender waits until it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from devices.errors import MismatchError
from devices.fabric.interface import AnyOf, Condition, Fabric, Raised, Read
from devices.fabric.mark import Mark, check_alike

FIRST_LANE = 2
"""Lane `FIRST_LANE + r` counts the messages that a rank has for rank r; the lanes below it are the collectives'."""


@final
@dataclass(frozen=True, slots=True)
class Sent:
    """What a reader gets beside a message: its tag, and the call that sent it."""

    tag: Hashable
    mark: Mark

    @property
    def line(self) -> str:
        return self.mark.line

    def __str__(self) -> str:
        return str(self.mark)


@final
class _Receive:
    """Waits for a message of one of `peers`; `found` is who sent it, and its number."""

    def __init__(self, peers: Sequence[int]) -> None:
        self.peers = peers
        self.found: tuple[int, int] | None = None


@final
class Pairs:
    """All messages of one rank of a group, to and from each peer. Tags keep messages apart that share a pair."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._offered = [0] * fabric.size
        self._seen = [0] * fabric.size
        self._arrived: dict[tuple[int, Hashable], deque[int]] = {}
        self._receives: dict[Hashable, list[_Receive]] = {}

    def offer(self, peer: int, tensor: torch.Tensor, tag: Hashable, mark: Mark, *, is_part: bool = False) -> Read:
        """Let `peer` read `tensor`; return what holds when it has, until when the tensor must not be changed."""
        self._offered[peer] += 1
        name = "message", peer, self._offered[peer]
        self._fabric.export(name, tensor, Sent(tag, mark), readers=1, is_part=is_part)
        self._fabric.signal(FIRST_LANE + peer, self._offered[peer])
        return Read(name)

    def take(self, peer: int, tag: Hashable) -> Generator[Condition, None, int]:
        """Wait for the next message of `peer` with `tag`; return its number, for `read`."""
        _, number = yield from self._take((peer,), tag)
        return number

    def take_any(self, tag: Hashable) -> Generator[Condition, None, tuple[int, int]]:
        """Wait for the next message of anyone with `tag`; return the peer and the message's number."""
        others = [peer for peer in range(self._fabric.size) if peer != self._fabric.rank]
        return (yield from self._take(others, tag))

    def _take(self, peers: Sequence[int], tag: Hashable) -> Generator[Condition, None, tuple[int, int]]:
        self._look(peers)
        for peer in peers:
            if arrived := self._arrived.get((peer, tag)):
                number = arrived.popleft()
                if not arrived:
                    del self._arrived[peer, tag]
                return peer, number
        receive = _Receive(peers)
        receives = self._receives.setdefault(tag, [])
        receives.append(receive)
        try:
            while receive.found is None:
                following = [self._next(peer) for peer in peers]
                yield following[0] if len(following) == 1 else AnyOf(following)
                self._look(peers)
        finally:
            receives.remove(receive)
            if not receives:
                del self._receives[tag]
        return receive.found

    def read(self, peer: int, number: int, target: torch.Tensor, mark: Mark) -> None:
        """Copy a message into `target`, for the call `mark`.

        Raises:
            MismatchError: it is of another size, or of another collective.
        """
        target.copy_(self.peek(peer, number, target, mark))
        self.done(peer, number)

    def peek(self, peer: int, number: int, like: torch.Tensor, mark: Mark) -> torch.Tensor:
        """Return a message where it lies, to be given back by `done`.

        Raises:
            MismatchError: as of `read`.
        """
        tensor, sent = self._fabric.open(peer, self._name(number))
        assert tensor is not None
        assert isinstance(sent, Sent)
        if mark.number:
            check_alike(mark, sent.mark)
        if tensor.numel() != like.numel():
            raise MismatchError(
                f"rank {mark.rank} receives {like.nbytes} bytes ({mark.line}) from rank {sent.mark.rank}, which sent "
                f"{tensor.nbytes} ({sent.line})"
            )
        return tensor

    def done(self, peer: int, number: int) -> None:
        """Let the sender have its tensor back."""
        self._fabric.close(peer, self._name(number))

    def _name(self, number: int) -> Hashable:
        return "message", self._fabric.rank, number

    def _next(self, peer: int) -> Raised:
        return Raised((peer,), FIRST_LANE + self._fabric.rank, self._seen[peer] + 1)

    def _look(self, peers: Sequence[int]) -> None:
        """Give the messages that have come to those who wait for them, in the order in which they began to."""
        for peer in peers:
            while self._fabric.holds(self._next(peer)):
                self._seen[peer] += 1
                number = self._seen[peer]
                _, sent = self._fabric.open(peer, self._name(number))
                assert isinstance(sent, Sent)
                for receive in self._receives.get(sent.tag, ()):
                    if receive.found is None and peer in receive.peers:
                        receive.found = peer, number
                        break
                else:
                    self._arrived.setdefault((peer, sent.tag), deque()).append(number)
