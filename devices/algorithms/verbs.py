"""`Verbs`: the complete set of verbs over any conforming communicator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices._backend import Message, Pending, PendingFrom
from devices.algorithms.moving import Moving
from devices.algorithms.reducing import Reducing

Tensor = torch.Tensor


@final
class Verbs(Reducing, Moving):
    """A group's verbs, seen from one rank: native where the communicator has them and they fit, else composed.

    All tensors are flat, contiguous and on the group's device. Each verb returns a `Pending`, already done unless
    `async_op`. `counts` are numbers of elements by rank, the same on all ranks, zeros allowed; without them all
    parts are equal. What is not changed in place is left unchanged; a part of the input and its counterpart in
    the output may be the same memory. All ranks call a group's collective verbs in the same order; send, recv and
    exchange are apart from that order, may be called beside it, and need only be matched by their peer.

    A composed verb with `async_op` runs on a thread of the group, and while it does, the verbs after it queue
    there, so `exchange` may be called from two threads at once.

    Args:
        communicator: the group's transport; None will do for a group of one.
        group: the members.
        capabilities: what the device and the communicator can do.
        lacks: of dtypes that some ranks' devices have and others' have not, who has not, in words.
        survivors: finds the ranks that are left after an error; None where the communicator does, if anything.

    Raises:
        PluginError: the communicator lacks what every verb could be composed from.
    """

    def send(self, tensor: Tensor, dst: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        """Send `tensor` to rank `dst`, which receives it with the same tag."""
        return self._messages.exchange("send", (Message(tensor, dst, tag),), (), async_op)

    def recv(self, tensor: Tensor, src: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        """Fill `tensor` with what rank `src` sends with the same tag."""
        return self._messages.exchange("recv", (), (Message(tensor, src, tag),), async_op)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> PendingFrom:
        """Start to fill `tensor` with what the first rank to send something with that tag sends."""
        return self._messages.receive_any(tensor, tag)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, async_op: bool = False) -> Pending:
        """Do all sends and receives together, of tensors of any dtype; neither waits for the other."""
        return self._messages.exchange("exchange", sends, recvs, async_op)
