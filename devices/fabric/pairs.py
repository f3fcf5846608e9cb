"""Messages between two ranks over a fabric: each is read where it lies, and its sender waits until it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Hashable, Sequence
from typing import final

import torch

from devices.errors import CollectiveError
from devices.fabric.interface import AnyOf, Condition, Fabric, Raised, Read

FIRST_LANE = 2
"""Lane `FIRST_LANE + r` counts the messages that a rank has for rank r; the lanes below it are the collectives'."""


@final
class Pairs:
    """All messages of one rank of a group, to and from each peer. Tags keep messages apart that share a pair."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._offered = [0] * fabric.size
        self._seen = [0] * fabric.size
        self._arrived: dict[tuple[int, Hashable], deque[int]] = {}

    def offer(self, peer: int, tensor: torch.Tensor, tag: Hashable, *, is_part: bool = False) -> Read:
        """Let `peer` read `tensor`; return what holds when it has, until when the tensor must not be changed."""
        self._offered[peer] += 1
        name = "message", peer, self._offered[peer]
        self._fabric.export(name, tensor, tag, readers=1, is_part=is_part)
        self._fabric.signal(FIRST_LANE + peer, self._offered[peer])
        return Read(name)

    def take(self, peer: int, tag: Hashable) -> Generator[Condition, None, int]:
        """Wait for the next message of `peer` with `tag`; return its number, for `read`."""
        while (number := self._find(peer, tag)) is None:
            yield self._next(peer)
        return number

    def take_any(self, tag: Hashable) -> Generator[Condition, None, tuple[int, int]]:
        """Wait for the next message of anyone with `tag`; return the peer and the message's number."""
        others = [peer for peer in range(self._fabric.size) if peer != self._fabric.rank]
        while True:
            for peer in others:
                if (number := self._find(peer, tag)) is not None:
                    return peer, number
            yield AnyOf([self._next(peer) for peer in others])

    def read(self, peer: int, number: int, target: torch.Tensor) -> None:
        """Copy a message into `target`.

        Raises:
            CollectiveError: it is of another size.
        """
        name = self._name(number)
        sent, _ = self._fabric.open(peer, name)
        assert sent is not None
        if sent.numel() != target.numel():
            raise CollectiveError(
                f"rank {self._fabric.rank} receives {target.nbytes} bytes from rank {peer}, which sent {sent.nbytes}"
            )
        target.copy_(sent)
        self._fabric.close(peer, name)

    def peek(self, peer: int, number: int) -> torch.Tensor:
        """Return a message where it lies, to be given back by `done`."""
        sent, _ = self._fabric.open(peer, self._name(number))
        assert sent is not None
        return sent

    def done(self, peer: int, number: int) -> None:
        """Let the sender have its tensor back."""
        self._fabric.close(peer, self._name(number))

    def _name(self, number: int) -> Hashable:
        return "message", self._fabric.rank, number

    def _next(self, peer: int) -> Raised:
        return Raised((peer,), FIRST_LANE + self._fabric.rank, self._seen[peer] + 1)

    def _find(self, peer: int, tag: Hashable) -> int | None:
        while self._fabric.holds(self._next(peer)):
            self._seen[peer] += 1
            _, its_tag = self._fabric.open(peer, self._name(self._seen[peer]))
            self._arrived.setdefault((peer, _hashable(its_tag)), deque()).append(self._seen[peer])
        waiting = self._arrived.get((peer, tag))
        return waiting.popleft() if waiting else None


def _hashable(tag: object) -> Hashable:
    return tuple(tag) if isinstance(tag, Sequence) and not isinstance(tag, str) else tag
