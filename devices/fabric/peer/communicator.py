"""A communicator over the memory of the ranks' devices; through host memory where that cannot be mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices._backend import Communicator, Group, Message, Pending
from devices._capture import is_capturing
from devices._staged import open_staged
from devices.algorithms.started import DONE
from devices.errors import UnsupportedError
from devices.fabric.communicator import REDUCTIONS, FabricCommunicator
from devices.fabric.peer.fabric import PeerFabric
from devices.fabric.peer.memory import DeviceMemory
from devices.fabric.peer.opening import open_peer_fabric

Tensor = torch.Tensor


def open_peer_memory(
    group: Group, memory: DeviceMemory | str, reason: str, *, scheduled: bool = False, required: bool = False
) -> Communicator:
    """Return what carries a group whose ranks read the memory of each other's devices; every member calls this.

    Where a rank cannot, all go through host memory, as `open_staged` does, and `devices.explain()` says why.

    Args:
        group: the members.
        memory: that of this rank's device; or why there is none, in words.
        reason: why it is needed, for `devices.explain()`.
        scheduled: let all ranks work at once on what is large: on devices of their own that is faster.
        required: refuse the group, on all ranks, where one cannot.

    Raises:
        UnsupportedError: one cannot, and it is required.
    """
    fabric = open_peer_fabric(group, memory)
    if isinstance(fabric, str) and required:
        raise UnsupportedError(f"{group}: {reason}, and the memory of devices cannot be mapped: {fabric}")
    if isinstance(fabric, str):
        return open_staged(group, f"{reason}, and the memory of devices is not mapped: {fabric}")
    try:
        messages = open_staged(group, "they keep out of the order of collectives")
    except BaseException:
        fabric.leave()
        raise
    return PeerCommunicator(fabric, group, messages, reason, scheduled=scheduled)


@final
class PeerCommunicator(Communicator):
    """Carries a group's verbs over the memory of its devices; each is done when it returns.

    Args:
        fabric: the group's.
        group: the members.
        messages: carries the messages of programs, which may be waited for on any thread and stream.
        reason: why it goes this way.
        scheduled: as `FabricCommunicator` has it.
    """

    blocking = True
    reduce_spares = True
    own = frozenset(
        (
            "exchange", "all_gather", "all_reduce", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather",
            "scatter", "barrier",
        )
    )  # fmt: skip

    def __init__(
        self, fabric: PeerFabric, group: Group, messages: Communicator, reason: str, *, scheduled: bool
    ) -> None:
        self._over = FabricCommunicator(fabric, group, scheduled=scheduled)
        self._group = group
        self.messages: Communicator = messages
        self.reductions = REDUCTIONS
        self.note = (
            f"through memory that the ranks map of each other's devices, for {reason}; messages between two ranks "
            f"{messages.note}"
        )

    def _run(self, pending: Pending) -> Pending:
        pending.wait()
        return DONE

    @property
    def _verbs(self) -> FabricCommunicator:
        """What carries a verb that may begin now."""
        if is_capturing(self._group.device.type):
            raise UnsupportedError(
                f"{self._group}: the host takes part in its verbs, which a graph that is captured cannot do; call the "
                "verb outside of the capture"
            )
        return self._over

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        return self._run(self._verbs.all_gather(output, input))

    def all_reduce(self, tensor: Tensor, op: str) -> Pending:
        return self._run(self._verbs.all_reduce(tensor, op))

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        return self._run(self._verbs.reduce_scatter(output, input, op))

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        return self._run(self._verbs.all_to_all(output, input, output_counts, input_counts))

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        return self._run(self._verbs.broadcast(tensor, src))

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Pending:
        return self._run(self._verbs.reduce(tensor, dst, op))

    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Pending:
        return self._run(self._verbs.gather(output, input, dst))

    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Pending:
        return self._run(self._verbs.scatter(output, input, src))

    def barrier(self) -> Pending:
        return self._run(self._verbs.barrier())

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        """Carry the messages that verbs are composed from; they are waited for where they are started."""
        return self._verbs.exchange(sends, recvs)

    def abort(self) -> None:
        try:
            self._over.abort()
        finally:
            self.messages.abort()

    def close(self) -> None:
        try:
            self._over.close()
        finally:
            self.messages.close()
