"""Messages between two ranks of a group: apart from the order of its collectives, and composed from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices._backend import Communicator, Group, Message, Pending, PendingFrom
from devices.algorithms.as_bytes import as_bytes
from devices.algorithms.lowerings import own_verbs
from devices.algorithms.requirements import Requirements
from devices.algorithms.started import DONE, Started, StartedFrom, fail, go_on_beside
from devices.recorder.record import GroupRecorder, end


@final
class Messages:
    """A group's messages, seen from one rank.

    Args:
        communicator: carries them, or has one that does; None for a group of one.
        group: the members.
        require: what their arguments must be like.
        flight: records them; None for a group of one.

    Attributes:
        is_there: whether a message between two ranks can be sent.
    """

    def __init__(
        self, communicator: Communicator | None, group: Group, require: Requirements, flight: GroupRecorder | None
    ) -> None:
        if communicator is not None and communicator.messages is not None:
            communicator = communicator.messages
        self._communicator = communicator
        self._size = group.size
        self._require = require
        self._flight = flight
        own = own_verbs(communicator) if communicator is not None else frozenset()
        self.is_there, self._has_any = "exchange" in own, "recv_any" in own

    def exchange(self, verb: str, sends: Sequence[Message], recvs: Sequence[Message], async_op: bool) -> Pending:
        """Do all together, of tensors of any dtype; `verb` is what the program called."""
        self._require.open(verb)
        for message in (*sends, *recvs):
            self._require.peer(verb, message.peer, message.tag)
            self._require.open(verb, message.tensor.dtype)
        if not sends and not recvs:
            return DONE
        if not self.is_there or self._communicator is None or self._flight is None:
            raise self._require.no_messages(verb, self._communicator)
        out, into = [_in_bytes(message) for message in sends], [_in_bytes(message) for message in recvs]
        first, *others = *sends, *recvs
        numel = sum(message.tensor.numel() for message in (first, *others))
        record = self._flight.begin_message(verb, first.tensor.dtype, numel, -1 if others else first.peer)
        try:
            pending = self._communicator.exchange(out, into)
            if async_op:
                go_on_beside(pending)
                return Started(self._flight, record, pending)
            pending.wait()
        except Exception as error:
            fail(self._flight, record, error)
        end(record)
        return DONE

    def receive_any(self, tensor: torch.Tensor, tag: int) -> PendingFrom:
        """Start to fill `tensor` with what the first rank to send something with that tag sends."""
        self._require.open("recv_any", tensor.dtype)
        self._require.tag("recv_any", tag)
        if self._size == 1 or self._communicator is None or self._flight is None:
            raise self._require.wrong("recv_any", "there is no other rank to receive from")
        if not self._has_any:
            raise self._require.no_source(self._communicator)
        record = self._flight.begin_message("recv_any", tensor.dtype, tensor.numel(), -1)
        try:
            pending = self._communicator.recv_any(as_bytes(tensor), tag)
            go_on_beside(pending)
        except Exception as error:
            fail(self._flight, record, error)
        return StartedFrom(Started(self._flight, record, pending), pending)


def _in_bytes(message: Message) -> Message:
    return Message(as_bytes(message.tensor), message.peer, message.tag, message.tensor.dtype)
