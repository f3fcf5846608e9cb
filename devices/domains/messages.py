"""The messages of programs in a group of several domains: what each is goes before it, its data by the nearest way.

What is told of a message goes by its tag, between any two ranks by what is between the domains; its data by a tag that
its number and size are part of, which no other receive waits for. So a receive of another size is an error that both
sides are told of, where the transport would end the process; and one from any rank need not wait in two places. Which
number a receive is of is known once what is told of it has come, or before, if no receive from any rank is waiting.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch

from devices._backend import Communicator, Group, Message, Pending, PendingFrom
from devices._work import Together
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.lines import caller
from devices.algorithms.listeners import Listeners
from devices.algorithms.lowerings import own_verbs
from devices.algorithms.started import go_on_beside, wait_however_long
from devices.domains.alarm import Alarm
from devices.domains.arrivals import OnArrival
from devices.domains.bridge import Bridge, Crossing
from devices.errors import CollectiveError, MismatchError

Tensor = torch.Tensor

_WORDS = 512
"""The bytes of what is told of a message."""

_FIRST_TAG = COLLECTIVE_TAG + 2
"""The first of the tags that data goes by."""

_NUMBERS = 1024
"""How many numbers messages have before they come again: more than are ever on their way at once."""


class _Told(NamedTuple):
    """What a sender tells of a message: its rank in the group, the message's number, bytes and dtype, and the line."""

    source: int
    number: int
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
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()
        # By tag, the receives from any rank of which nobody knows yet whom they hear.
        self._open: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._listeners = Listeners(f"devices {group.name} receives")

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        line = caller()
        started = [self._receive(recv, line) for recv in recvs]
        for send in sends:
            with self._lock:
                number = self._sent[send.peer, send.tag]
                self._sent[send.peer, send.tag] += 1
            told = _words(_Told(self._group.rank, number, send.tensor.nbytes, _name(send.dtype), line))
            started.append(self._bridge.tell(send.peer, told, send.tag))
            started.append(self._bridge.start([(send.peer, send.tensor)], [], self._tag(send, number)))
        return Watched(self._alarm, started)

    def _receive(self, recv: Message, line: str) -> Pending:
        words = torch.empty(_WORDS, dtype=torch.uint8)
        with self._lock:
            number = self._received[recv.peer, recv.tag]
            self._received[recv.peer, recv.tag] += 1
            is_known = not self._open[recv.tag]
        hears = self._bridge.hear(recv.peer, words, recv.tag)
        if not is_known:
            # One from any rank that was asked for before may be given this one's number.
            what = f"recv{_tagged(recv)}"
            arrives = OnArrival(self._group, hears, lambda: self._take(_read(words), recv, line), what)
            self._listeners.listen(arrives.listen, (recv.peer, recv.tag))
            return arrives
        return _Receiving(hears, lambda: self._check(_read(words), recv, line), self._data(recv, number))

    def _take(self, told: _Told, recv: Message, line: str) -> Crossing:
        """Ask for the data of a message of which this rank was told."""
        self._check(told, recv, line)
        return self._data(recv, told.number)

    def _data(self, recv: Message, number: int) -> Crossing:
        return self._bridge.start([], [(recv.peer, recv.tensor)], self._tag(recv, number))

    def _tag(self, message: Message, number: int) -> int:
        """Return the tag that the data of a message goes by."""
        text = f"{message.tag} {message.tensor.nbytes} {number % _NUMBERS} {self._group.name}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return _FIRST_TAG + int.from_bytes(digest) % ((1 << 31) - _FIRST_TAG)

    def _check(self, told: _Told, recv: Message, line: str) -> None:
        """Raise if a message is not what this rank receives."""
        name = _name(recv.dtype)
        is_other = name and told.dtype and name != told.dtype
        if is_other or told.bytes != recv.tensor.nbytes:
            ranks, field = self._group.ranks, "dtype" if is_other else "size"
            raise MismatchError(
                f"rank {ranks[self._group.rank]} receives {recv.tensor.nbytes} bytes{_of(name)}{_tagged(recv)} "
                f"({line}) from rank {ranks[told.source]}, which sent {told.bytes}{_of(told.dtype)} ({told.line}): "
                f"they differ in {field}"
            )

    def recv_any(self, tensor: Tensor, tag: int) -> PendingFrom:
        words, line = torch.empty(_WORDS, dtype=torch.uint8), caller()
        with self._lock:
            self._open[tag] += 1
        hears = self._bridge.communicator.recv_any(words, tag)
        came: list[_Told] = []

        def take() -> Pending:
            told = _read(words)
            with self._lock:
                self._received[told.source, tag] += 1
                self._open[tag] -= 1
            came.append(told)
            return self._take(told, Message(tensor, told.source, tag), line)

        what = f"recv from any rank{_tagged(Message(tensor, -1, tag))}"
        arrives = OnArrival(self._group, hears, take, what)
        self._listeners.listen(arrives.listen, (-1, tag))
        return _FromAny(Watched(self._alarm, [arrives]), came)

    def close(self) -> None:
        self._listeners.close()


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

    def wait_however_long(self) -> None:
        """Wait while the program does other things: it is no call of the program's."""
        for each in self._started:
            wait_however_long(each)

    def is_completed(self) -> bool:
        # Once the group is closed for good, to wait is to raise: also where peers have closed it while this rank asks.
        return self._together.is_completed() or self._alarm.has_rung()

    def go_on_beside(self) -> None:
        """Let what goes by memory go on without anyone waiting; the rest does so by itself."""
        for each in self._started:
            go_on_beside(each)


@final
class _Receiving:
    """A message to this rank, whose data is asked for.

    Args:
        hears: what is told of it.
        check: raises if that is not what this rank receives.
        data: its data.
    """

    def __init__(self, hears: Crossing, check: Callable[[], None], data: Crossing) -> None:
        self._hears, self._check, self._data = hears, check, data

    def wait(self) -> None:
        self._hears.wait()
        self._check()
        self._data.wait()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        self._hears.wait_however_long()
        self._check()
        self._data.wait()

    def is_completed(self) -> bool:
        if not self._hears.is_completed():
            return False
        try:
            self._hears.wait()
            self._check()
        except CollectiveError:
            # Who waits is told of it, and what this rank has asked for never comes.
            return True
        return self._data.is_completed()

    def go_on_beside(self) -> None:
        self._data.go_on_beside()


@final
class _FromAny:
    """A message whose source is not known beforehand."""

    def __init__(self, watched: Watched, came: Sequence[_Told]) -> None:
        self._watched = watched
        self._came = came

    def wait(self) -> None:
        self._watched.wait()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        self._watched.wait_however_long()

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
    source, number, size, dtype, line = json.loads(words.numpy().tobytes())
    return _Told(source, number, size, dtype, line)


def _tagged(message: Message) -> str:
    return f" with tag {message.tag}" if message.tag else ""


def _name(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _of(dtype: str) -> str:
    return f" of {dtype}" if dtype else ""
