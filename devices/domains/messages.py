"""The messages of programs in a group of several domains: what each is goes before it, its data by the nearest way.

What is told of a message goes by its tag, between any two ranks by what is between the domains; its data by a tag that
its size is part of, which no other receive waits for. So a receive of another size is an error that both sides are told
of, where the transport would end the process; and one from any rank need not wait in two places.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch

from devices._backend import Communicator, Group, Message, Pending, PendingFrom
from devices._work import Together
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.lines import caller
from devices.algorithms.lowerings import own_verbs
from devices.algorithms.started import go_on_beside
from devices.domains.alarm import Alarm
from devices.domains.bridge import Bridge, Crossing
from devices.errors import MismatchError

Tensor = torch.Tensor

_WORDS = 512
"""The bytes of what is told of a message."""

_FIRST_TAG = COLLECTIVE_TAG + 2
"""The first of the tags that data goes by."""


class _Told(NamedTuple):
    """What a sender tells of a message: its rank in the group, its bytes, its dtype and the line that sent it."""

    source: int
    bytes: int
    dtype: str
    line: str


@final
class DomainsMessages(Communicator):
    """Carries the messages of programs, for one rank of a group of several domains.

    Args:
        group: the members.
        bridge: takes them from rank to rank.
        alarm: tells all what goes wrong.
    """

    def __init__(self, group: Group, bridge: Bridge, alarm: Alarm) -> None:
        self._group, self._bridge, self._alarm = group, bridge, alarm
        self.own = own_verbs(bridge.communicator) & {"exchange", "recv_any"}

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        line = caller()
        started = [self._receive(recv, line) for recv in recvs]
        for send in sends:
            told = _words(_Told(self._group.rank, send.tensor.nbytes, _name(send.dtype), line))
            started.append(self._bridge.tell(send.peer, told, send.tag))
            started.append(self._bridge.start([(send.peer, send.tensor)], [], _tag(send.tag, send.tensor.nbytes)))
        return Watched(self._alarm, started)

    def _receive(self, recv: Message, line: str) -> Pending:
        words = torch.empty(_WORDS, dtype=torch.uint8)
        hears = self._bridge.hear(recv.peer, words, recv.tag)
        data = self._data(recv)

        def take() -> None:
            hears.wait()
            self._check(_read(words), recv, line)
            data.wait()

        return _Receiving(take, data)

    def _data(self, recv: Message) -> Crossing:
        return self._bridge.start([], [(recv.peer, recv.tensor)], _tag(recv.tag, recv.tensor.nbytes))

    def _check(self, told: _Told, recv: Message, line: str) -> None:
        """Raise if a message is not what this rank receives."""
        name = _name(recv.dtype)
        is_other = name and told.dtype and name != told.dtype
        if is_other or told.bytes != recv.tensor.nbytes:
            ranks, field = self._group.ranks, "dtype" if is_other else "size"
            tagged = f" with tag {recv.tag}" if recv.tag else ""
            raise MismatchError(
                f"rank {ranks[self._group.rank]} receives {recv.tensor.nbytes} bytes{_of(name)}{tagged} ({line}) from "
                f"rank {ranks[told.source]}, which sent {told.bytes}{_of(told.dtype)} ({told.line}): they differ in "
                f"{field}"
            )

    def recv_any(self, tensor: Tensor, tag: int) -> PendingFrom:
        words, line = torch.empty(_WORDS, dtype=torch.uint8), caller()
        hears = self._bridge.communicator.recv_any(words, tag)
        came: list[_Told] = []

        def take() -> None:
            hears.wait()
            came.append(_read(words))
            recv = Message(tensor, came[0].source, tag)
            self._check(came[0], recv, line)
            self._data(recv).wait()

        return _FromAny(Watched(self._alarm, [_Receiving(take)]), came)


@final
class Watched:
    """Messages of which all are told what goes wrong.

    Args:
        alarm: tells it.
        started: the messages.
    """

    def __init__(self, alarm: Alarm, started: Sequence[Pending]) -> None:
        self._alarm = alarm
        self._started = started
        self._together = Together(started)

    def wait(self) -> None:
        with self._alarm:
            # Whoever waits for what goes by memory may be who this rank waits for; of one message that cannot be.
            if len(self._started) > 2:
                self.go_on_beside()
            self._together.wait()

    def is_completed(self) -> bool:
        return self._together.is_completed()

    def go_on_beside(self) -> None:
        """Let what goes by memory go on without anyone waiting; the rest does so by itself."""
        for each in self._started:
            go_on_beside(each)


@final
class _Receiving:
    """A message to this rank.

    Args:
        take: waits for what is told of it and for its data, and compares them with what this rank receives.
        data: its data, where it is known who it comes from.
    """

    def __init__(self, take: Callable[[], None], data: Crossing | None = None) -> None:
        self._take = take
        self._data = data

    def wait(self) -> None:
        self._take()

    def is_completed(self) -> bool:
        return self._data is not None and self._data.is_completed()

    def go_on_beside(self) -> None:
        if self._data is not None:
            self._data.go_on_beside()


@final
class _FromAny:
    """A message whose source is not known beforehand."""

    def __init__(self, watched: Watched, came: Sequence[_Told]) -> None:
        self._watched = watched
        self._came = came

    def wait(self) -> None:
        self._watched.wait()

    def is_completed(self) -> bool:
        return self._watched.is_completed()

    def source(self) -> int:
        return self._came[0].source


def _words(told: _Told) -> Tensor:
    """Return what is told, as bytes; of a line that is too long its end."""
    while len(text := json.dumps(told).encode()) > _WORDS:
        told = told._replace(line=told.line[len(told.line) // 2 :])
    return torch.frombuffer(bytearray(text.ljust(_WORDS)), dtype=torch.uint8)


def _read(words: Tensor) -> _Told:
    source, size, dtype, line = json.loads(words.numpy().tobytes())
    return _Told(source, size, dtype, line)


def _tag(tag: int, size: int) -> int:
    """Return the tag that the data of messages goes by: the same for those of one tag and size."""
    digest = hashlib.blake2b(f"{tag} {size}".encode(), digest_size=8).digest()
    return _FIRST_TAG + int.from_bytes(digest) % ((1 << 31) - _FIRST_TAG)


def _name(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _of(dtype: str) -> str:
    return f" of {dtype}" if dtype else ""
