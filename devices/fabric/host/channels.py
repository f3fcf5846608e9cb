"""Messages between two ranks: each pair has a ring of bytes a way, which the source fills and the target empties.

A message that nobody waits for yet is taken out of its ring all the same, so that it holds up none with another tag.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import final

import numpy as np

from devices._backend import Group, Message
from devices.algorithms.lines import caller
from devices.errors import CollectiveError, MismatchError
from devices.fabric.host.arrays import Array, array_of
from devices.fabric.host.layout import LINE, WORD
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import Watch

PIECE = 1 << 17
"""So many bytes of a message are written before the target is told of them, and taken before the source is."""

_HEADER = struct.Struct("<qqq")
"""Of a message: its tag, its bytes, and those of what comes next: its dtype and the line that sent it."""


@final
class _Send:
    """A message on its way out."""

    def __init__(self, message: Message, line: str) -> None:
        self.peers: Sequence[int] = (message.peer,)
        self.tag = message.tag
        self.data: Array = array_of(message.tensor)
        text = f"{_name(message)} {line[-500:]}".encode()
        # Padded, so that all that follows begins where a line does: copies a few bytes off are slow.
        text += b" " * (-(_HEADER.size + len(text)) % LINE)
        self.head: Array = np.frombuffer(_HEADER.pack(message.tag, self.data.size, len(text)) + text, np.uint8)
        self.written = 0
        self.is_done = False
        self.error: CollectiveError | None = None

    def __str__(self) -> str:
        return f"send of {self.data.size} bytes{_tagged(self.tag)}"


@final
class _Receive:
    """A message that this rank waits for; `found` is what has come of it."""

    def __init__(self, peers: Sequence[int], tag: int, data: Array, dtype: str, line: str) -> None:
        self.peers, self.tag, self.data, self.dtype, self.line = peers, tag, data, dtype, line
        self.found: _Arrival | None = None
        self.is_done = False
        self.error: CollectiveError | None = None

    def __str__(self) -> str:
        return f"recv of {self.data.size} bytes{_tagged(self.tag)}"


@final
class _Arrival:
    """A message on its way in: straight to whoever waits for it, or to memory of its own until someone does."""

    def __init__(self, peer: int, tag: int, bytes: int, text: str) -> None:
        self.peer, self.tag, self.bytes = peer, tag, bytes
        self.dtype, _, self.line = text.partition(" ")
        self.taken = 0
        self.data: Array | None = None
        self.receive: _Receive | None = None


@final
class Channels:
    """All messages of one rank of a group.

    Args:
        segment: the group's memory.
        group: the members.
        watch: what this rank waits by.
    """

    def __init__(self, segment: Segment, group: Group, watch: Watch) -> None:
        self._group = group
        self._watch = watch
        self._segment = segment
        self._words = segment.words
        layout = segment.layout
        self._capacity = layout.ring_bytes
        me, others = group.rank, [peer for peer in range(group.size) if peer != group.rank]
        self._out = {peer: layout.channel(me, peer) for peer in others}
        self._in = {peer: layout.channel(peer, me) for peer in others}
        self._tails = {peer: start // WORD for peer, start in self._in.items()}
        self._taken = dict.fromkeys(others, 0)
        self._sent = dict.fromkeys(others, 0)
        self._sends: dict[int, deque[_Send]] = {}
        self._receives: list[_Receive] = []
        self._arriving: dict[int, _Arrival] = {}
        self._unclaimed: list[_Arrival] = []
        self._lock = threading.RLock()
        self._helper: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_closed = False
        self._looked = 0.0

    # What a verb calls.

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Exchange:
        """Start messages, and go as far as it goes at once."""
        self._watch.check()
        line = caller()
        with self._lock:
            parts: list[_Send | _Receive] = [
                self._expect(_Receive((recv.peer,), recv.tag, array_of(recv.tensor), _name(recv), line))
                for recv in recvs
            ]
            for send in sends:
                out = _Send(send, line)
                self._sends.setdefault(send.peer, deque()).append(out)
                parts.append(out)
            self.advance()
        return Exchange(self, parts)

    def receive_any(self, data: Array, tag: int) -> Exchange:
        """Start to receive from whoever sends first."""
        self._watch.check()
        with self._lock:
            receive = self._expect(_Receive(tuple(self._in), tag, data, "", caller()))
            self.advance()
        return Exchange(self, [receive])

    def wait(self, parts: Sequence[_Send | _Receive]) -> None:
        """Go on until all of `parts` are done; raise what went wrong."""

        def is_done() -> bool:
            if _are_done(parts):
                return True
            with self._lock:
                if self.advance():
                    self._watch.stay_awake()
            return _are_done(parts)

        def missing() -> list[int]:
            late = [part.peers for part in parts if not part.is_done]
            # Of several that a message may come from, the last to be lost is the one that counts.
            lost = [peers for peers in late if len(peers) == 1 or self._watch.are_gone(peers)]
            return sorted({peer for peers in lost for peer in peers})

        def about() -> str:
            part = next((part for part in parts if not part.is_done), parts[0])
            way = "to" if isinstance(part, _Send) else "from"
            peers = " or ".join(str(self._group.ranks[peer]) for peer in part.peers)
            return f"{part} {way} rank {peers}"

        self._watch.until(is_done, missing, about)
        for part in parts:
            if part.error is not None:
                raise part.error

    def are_over(self, parts: Sequence[_Send | _Receive]) -> bool:
        """Return whether `wait` would return, or raise, at once."""
        if not _are_done(parts):
            with self._lock:
                self.advance()
        late = [part for part in parts if not part.is_done]
        if not late:
            return True
        if (now := time.monotonic()) - self._looked < 0.01:
            return False
        self._looked = now
        return self._watch.is_over() or any(self._watch.are_gone(part.peers) for part in late)

    def go_on_beside(self) -> None:
        """Let a thread of the group go on with what is on its way while the program does other things."""
        with self._lock:
            if self._helper is None:
                self._helper = threading.Thread(target=self._help, name=f"devices {self._group.name}", daemon=True)
                self._helper.start()
        self._wake.set()

    def _help(self) -> None:
        nap = 20e-6
        while not self._is_closed:
            with self._lock:
                has_gone = self.advance()
                is_idle = not self._receives and not any(self._sends.values()) and not self._arriving
                if is_idle:
                    self._wake.clear()
            if is_idle:
                self._wake.wait()
                nap = 20e-6
            elif has_gone:
                nap = 20e-6
            else:
                time.sleep(nap)
                nap = min(nap * 1.2, 0.001)

    def close(self) -> str:
        """Write what is still to be sent, as far as it is taken; return what was sent to this rank and not received."""
        deadline = time.monotonic() + self._group.timeout.total_seconds()
        while any(self._sends.values()) and self._watch.error is None and time.monotonic() < deadline:
            with self._lock:
                self.advance()
            if any(self._sends.values()):
                if self._watch.failure_of([peer for peer, queue in self._sends.items() if queue]) is not None:
                    break
                time.sleep(50e-6)
        with self._lock:
            self.advance()
            left = [*self._unclaimed, *(each for each in self._arriving.values() if each.receive is None)]
        self._is_closed = True
        self._wake.set()
        told = [
            f"{each.bytes} bytes{_tagged(each.tag)} of rank {self._group.ranks[each.peer]}, sent at {each.line}"
            for each in left[:3]
        ]
        return "; ".join(told) + (f" and {len(left) - 3} more" if len(left) > 3 else "")

    # How messages move. All below is called with the lock held.

    def advance(self) -> bool:
        """Move what can be moved; return whether anything was."""
        has_gone = False
        for peer, queue in self._sends.items():
            while queue and self._write(peer, queue[0]):
                has_gone = True
                if not queue[0].is_done:
                    break
                queue.popleft()
        for peer, tail in self._tails.items():
            if self._words[tail] != self._taken[peer]:
                self._read(peer)
                has_gone = True
        return has_gone

    def _write(self, peer: int, send: _Send) -> bool:
        """Write as much of a message as its ring takes; return whether it took any."""
        start = self._out[peer]
        space = self._capacity - (self._sent[peer] - self._words[(start + LINE) // WORD])
        if not send.written:
            if space < send.head.size:
                return False
            self._put(peer, send.head)
            space -= send.head.size
            send.written = send.head.size
        elif not space:
            return False
        end = min(send.written - send.head.size + space, send.data.size)
        while True:
            done = send.written - send.head.size
            piece = send.data[done : min(done + PIECE, end)]
            self._put(peer, piece)
            send.written += piece.size
            if done + piece.size == send.data.size:
                self._sent[peer] += -send.data.size % LINE
            # The target sees the bytes before it sees that they are there, and takes them while the next are written.
            self._words[start // WORD] = self._sent[peer]
            if done + piece.size == end:
                break
        send.is_done = end == send.data.size
        return True

    def _put(self, peer: int, data: Array) -> None:
        for piece in self._places(self._out[peer], self._sent[peer], data.size):
            np.copyto(piece, data[: piece.size])
            data = data[piece.size :]
            self._sent[peer] += piece.size

    def _get(self, peer: int, data: Array) -> None:
        for piece in self._places(self._in[peer], self._taken[peer], data.size):
            np.copyto(data[: piece.size], piece)
            data = data[piece.size :]
            self._taken[peer] += piece.size

    def _places(self, channel: int, at: int, length: int) -> list[Array]:
        """Return `length` bytes of a ring from its `at`-th on: in two parts where its end comes between."""
        ring = channel + 2 * LINE
        begin = at % self._capacity
        first = min(length, self._capacity - begin)
        places = [self._segment.bytes[ring + begin : ring + begin + first]]
        if length > first:
            places.append(self._segment.bytes[ring : ring + length - first])
        return [place for place in places if place.size]

    def _read(self, peer: int) -> None:
        """Take out what a peer's ring holds, and what comes meanwhile, up to a ring full."""
        begun = self._taken[peer]
        while available := self._words[self._tails[peer]] - self._taken[peer]:
            if self._taken[peer] - begun >= self._capacity:
                return
            arrival = self._arriving.get(peer)
            if arrival is None:
                head = np.empty(_HEADER.size, np.uint8)
                self._get(peer, head)
                tag, bytes, length = _HEADER.unpack(head.tobytes())
                line = np.empty(length, np.uint8)
                self._get(peer, line)
                text = line.tobytes().decode(errors="replace").rstrip()
                arrival = self._arriving[peer] = _Arrival(peer, tag, bytes, text)
                available -= _HEADER.size + length
                self._claim(arrival)
            piece = min(available, arrival.bytes - arrival.taken, PIECE)
            if piece:
                assert arrival.data is not None
                self._get(peer, arrival.data[arrival.taken : arrival.taken + piece])
                arrival.taken += piece
            if arrival.taken == arrival.bytes:
                self._taken[peer] += -arrival.bytes % LINE
            self._words[(self._in[peer] + LINE) // WORD] = self._taken[peer]
            if arrival.taken == arrival.bytes:
                del self._arriving[peer]
                self._finish(arrival)

    def _claim(self, arrival: _Arrival) -> None:
        """Find who waits for a message that has begun to come."""
        for receive in self._receives:
            if receive.tag == arrival.tag and arrival.peer in receive.peers:
                self._receives.remove(receive)
                self._match(receive, arrival)
                break
        if arrival.data is None:
            arrival.data = np.empty(arrival.bytes, np.uint8)
            if arrival.receive is None:
                self._unclaimed.append(arrival)

    def _expect(self, receive: _Receive) -> _Receive:
        """Give a receive the first message that has come for it, or let it wait for one."""
        for arrival in self._unclaimed:
            if receive.tag == arrival.tag and arrival.peer in receive.peers:
                self._unclaimed.remove(arrival)
                self._match(receive, arrival)
                if arrival.taken == arrival.bytes:
                    self._finish(arrival)
                break
        else:
            self._receives.append(receive)
        return receive

    def _match(self, receive: _Receive, arrival: _Arrival) -> None:
        receive.found, arrival.receive = arrival, receive
        is_other = receive.dtype and arrival.dtype and receive.dtype != arrival.dtype
        if is_other or arrival.bytes != receive.data.size:
            me, field = self._group.ranks[self._group.rank], "dtype" if is_other else "size"
            error = MismatchError(
                f"rank {me} receives {receive.data.size} bytes{_of(receive.dtype)}{_tagged(receive.tag)} "
                f"({receive.line}) from rank {self._group.ranks[arrival.peer]}, which sent {arrival.bytes}"
                f"{_of(arrival.dtype)} ({arrival.line}): they differ in {field}"
            )
            self._watch.fail(error)
            receive.error, receive.is_done = error, True
        elif arrival.data is None:
            arrival.data = receive.data

    def _finish(self, arrival: _Arrival) -> None:
        """Hand over a message that has come whole."""
        receive = arrival.receive
        if receive is not None and not receive.is_done:
            assert arrival.data is not None
            if arrival.data is not receive.data:
                np.copyto(receive.data, arrival.data)
            receive.is_done = True


@final
class Exchange:
    """Messages that were started together. A `PendingFrom`."""

    def __init__(self, channels: Channels, parts: Sequence[_Send | _Receive]) -> None:
        self._channels = channels
        self._parts = parts
        self._is_over = False

    def wait(self) -> None:
        self._channels.wait(self._parts)

    def is_completed(self) -> bool:
        self._is_over = self._is_over or self._channels.are_over(self._parts)
        return self._is_over

    def go_on_beside(self) -> None:
        """Let it go on without anyone waiting."""
        if not self.is_completed():
            self._channels.go_on_beside()

    def source(self) -> int:
        (receive,) = self._parts
        assert isinstance(receive, _Receive)
        assert receive.found is not None
        return receive.found.peer


def _are_done(parts: Sequence[_Send | _Receive]) -> bool:
    return all(part.is_done for part in parts)


def _tagged(tag: int) -> str:
    return f" with tag {tag}" if 0 < tag < 1 << 30 else ""


def _name(message: Message) -> str:
    return "" if message.dtype is None else str(message.dtype).removeprefix("torch.")


def _of(dtype: str) -> str:
    return f" of {dtype}" if dtype else ""
