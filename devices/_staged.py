"""A communicator that carries a device's tensors through host memory, over the CPU path of the same ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from devices import _registry
from devices._backend import Asked, Communicator, Group, Message, Pending, PendingFrom
from devices._capture import is_capturing
from devices._store import Store
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.lowerings import own_verbs
from devices.algorithms.started import DONE, go_on_beside, wait_however_long
from devices.errors import CollectiveError, UnsupportedError
from devices.roster.answers import capabilities_of

Tensor = torch.Tensor


def open_staged(group: Group, reason: str) -> Communicator:
    """Open the CPU path over the ranks of `group`, and return what carries its devices' tensors there and back.

    Every member calls this, as it calls `Backend.open`. It is the way of devices that cannot reach each other: slower
    than any of their own, with every verb, and not to be captured in a graph.

    Args:
        group: the members; their devices may be of different kinds.
        reason: why it is needed, for `devices.explain()`.
    """
    backend = _registry.of_device_type("cpu")
    kind, index = group.device.type, group.device.index
    where = torch.device(kind) if kind == "cpu" else torch.device(kind, index)
    reductions = capabilities_of(backend, backend.devices()[0]).reductions
    return StagedCommunicator(open_host(group), reductions, where, f"{group}", reason)


def open_host(group: Group) -> Communicator:
    """Open the CPU path over the ranks of `group`, beside whatever else carries them; every member calls this."""
    backend = _registry.of_device_type("cpu")
    store, name = group.store.under("host"), f"{group.name}/host"
    return backend.open(Group(group.ranks, group.rank, backend.devices()[0], store, group.timeout, name))


@final
class StagedCommunicator(Communicator):
    """Copies what is sent to host memory, lets `host` carry it, and copies what came to the device.

    Messages keep to themselves: a program's own, between CPU tensors, may go over the same ranks beside them.

    Args:
        host: carries CPU tensors.
        reductions: what that reduces, unless it says so itself.
        device: where the tensors are.
        who: this rank and its group, for errors.
        reason: why they go through the host.
    """

    blocking = True

    def __init__(self, host: Communicator, reductions: object, device: torch.device, who: str, reason: str) -> None:
        self._host = host
        self._device = device
        self._who = who
        self._is_pinned = _pins(device)
        self._messages = host if host.messages is None else host.messages
        self.own = own_verbs(host) - {"recv_any"} | own_verbs(self._messages) & {"recv_any"}
        self.even = host.even
        self.reductions = host.reductions if host.reductions is not None else reductions  # type: ignore[assignment]
        carrier = host.note or type(host).__name__
        self.note = f"through host memory, for {reason}; {carrier}"

    # What the ranks agree on, they do on the host.

    def expect(self, call: Asked) -> None:
        self._host.expect(call)

    def agree(self) -> None:
        self._host.agree()

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._is_pinned)

    def _down(self, tensor: Tensor) -> Tensor:
        """Return a copy in host memory; the host waits for what the current stream still does to the tensor."""
        if is_capturing(self._device.type):
            raise UnsupportedError(
                f"{self._who}: its tensors go through host memory, which a graph that is captured cannot do; call the "
                "verb outside of the capture"
            )
        return self._empty(tensor).copy_(tensor)

    # Collectives: done when they return.

    def all_gather(self, output: Tensor, input: Tensor) -> Pending:
        there = self._empty(output)
        self._host.all_gather(there, self._down(input)).wait()
        output.copy_(there)
        return DONE

    def all_reduce(self, tensor: Tensor, op: str) -> Pending:
        there = self._down(tensor)
        self._host.all_reduce(there, op).wait()
        tensor.copy_(there)
        return DONE

    def reduce_scatter(self, output: Tensor, input: Tensor, op: str) -> Pending:
        there = self._empty(output)
        self._host.reduce_scatter(there, self._down(input), op).wait()
        output.copy_(there)
        return DONE

    def all_to_all(
        self, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
    ) -> Pending:
        there = self._empty(output)
        self._host.all_to_all(there, self._down(input), output_counts, input_counts).wait()
        output.copy_(there)
        return DONE

    def broadcast(self, tensor: Tensor, src: int) -> Pending:
        there = self._down(tensor)
        self._host.broadcast(there, src).wait()
        tensor.copy_(there)
        return DONE

    def reduce(self, tensor: Tensor, dst: int, op: str) -> Pending:
        there = self._down(tensor)
        self._host.reduce(there, dst, op).wait()
        tensor.copy_(there)
        return DONE

    def gather(self, output: Tensor | None, input: Tensor, dst: int) -> Pending:
        there = None if output is None else self._empty(output)
        self._host.gather(there, self._down(input), dst).wait()
        if output is not None and there is not None:
            output.copy_(there)
        return DONE

    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Pending:
        there = self._empty(output)
        self._host.scatter(there, None if input is None else self._down(input), src).wait()
        output.copy_(there)
        return DONE

    def permute(self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]]) -> Pending:
        there = None if output is None else self._empty(output)
        self._host.permute(there, self._down(input), pairs).wait()
        if output is not None and there is not None:
            output.copy_(there)
        return DONE

    def barrier(self) -> Pending:
        # What this rank's device was told before is done when the others are let go on.
        self._down(torch.zeros(1, dtype=torch.uint8, device=self._device))
        self._host.barrier().wait()
        return DONE

    # Messages.

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        out = [replace(send, tensor=self._down(send.tensor)) for send in sends]
        into = [replace(recv, tensor=self._empty(recv.tensor)) for recv in recvs]
        landed = [(recv.tensor, there.tensor) for recv, there in zip(recvs, into, strict=True)]
        # A program's own have their tags, which what carries the host's collectives may not keep apart.
        is_programs = any(message.tag < COLLECTIVE_TAG for message in (*sends, *recvs))
        carrier = self._messages if is_programs else self._host
        return _Landing(carrier.exchange(out, into), landed, self._who)

    def recv_any(self, tensor: Tensor, tag: int) -> PendingFrom:
        there = self._empty(tensor)
        pending = self._messages.recv_any(there, tag)
        return _LandingFrom(_Landing(pending, [(tensor, there)], self._who), pending)

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        return self._host.survivors()

    def abort(self) -> None:
        self._host.abort()

    def close(self) -> None:
        self._host.close()


@final
class _Landing:
    """Messages on their way, which are copied to the device once they have come to the host.

    Args:
        pending: what the host's communicator returned.
        landed: tensors on the device, each with what comes for it on the host.
        who: this rank and its group, for errors.
    """

    def __init__(self, pending: Pending, landed: Sequence[tuple[Tensor, Tensor]], who: str) -> None:
        self._who = who
        self._pending = pending
        self._landed = landed

    def wait(self) -> None:
        self._pending.wait()
        self._land()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        wait_however_long(self._pending)
        self._land()

    def _land(self) -> None:
        for tensor, there in self._landed:
            try:
                tensor.copy_(there)
            except RuntimeError as error:
                # It is none of the transport's, whose errors tell of a peer.
                text = str(error).partition("\n")[0]
                what = f"{there.nbytes} bytes that came to host memory could not be copied to {tensor.device}"
                raise CollectiveError(f"{self._who}: {what}: {text}") from error
        self._landed = ()

    def is_completed(self) -> bool:
        if not self._pending.is_completed():
            return False
        # Who only asks reads the tensors then. An error is for who waits.
        with contextlib.suppress(Exception):
            self.wait()
        return True

    def go_on_beside(self) -> None:
        """Be told that the program goes on beside them."""
        go_on_beside(self._pending)


@final
class _LandingFrom:
    """The same of a message whose source is not known beforehand."""

    def __init__(self, landing: _Landing, pending: PendingFrom) -> None:
        self._landing = landing
        self._pending = pending

    def wait(self) -> None:
        self._landing.wait()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        self._landing.wait_however_long()

    def is_completed(self) -> bool:
        return self._landing.is_completed()

    def go_on_beside(self) -> None:
        """Be told that the program goes on beside it."""
        self._landing.go_on_beside()

    def source(self) -> int:
        return self._pending.source()


def _pins(device: torch.device) -> bool:
    """Return whether host memory can be pinned for the device, which makes copies there and back fast."""
    if device.type == "cpu":
        return False
    try:
        torch.empty(1, pin_memory=True)
    except RuntimeError:
        return False
    return True
