"""`Communicator`: all that carries a group's verbs, and what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from devices.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

    from devices._store import Store


class Pending(Protocol):
    """What a communicator's verb returns at once: a `devices.Work`, torch's own Work, anything with these two."""

    def wait(self) -> object:
        """Block until the verb is done and its tensors may be used; raise if it failed."""
        ...

    def is_completed(self) -> bool:
        """Return whether `wait` would return at once."""
        ...


class PendingFrom(Pending, Protocol):
    """What `recv_any` returns."""

    def source(self) -> int:
        """Return the rank that the message came from; to be asked once it has come."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor to or from one peer.

    Args:
        tensor: flat, contiguous, of dtype uint8; may be of size zero.
        peer: the other side's rank in the group; never one's own.
        tag: messages between two ranks with one tag arrive in the order sent; other tags are independent.
        dtype: that of the program's tensor, for a transport that compares the two sides; None where it says nothing.
    """

    tensor: torch.Tensor
    peer: int
    tag: int = 0
    dtype: torch.dtype | None = None


class Asked(NamedTuple):
    """What all ranks that make a collective call together must agree on.

    Args:
        verb: its name.
        dtype: the tensors'; None for a barrier.
        size: the number of elements of a rank's tensor, where that is the same on all ranks; else -1.
        op: the reduce op, "" where there is none.
        root: the source or the destination, -1 where there is none.
        sizes: the elements of each rank's part, where they are not even; for permute, the pairs one after the other;
            for all_to_all, what each rank sends to each, row by row, along the dim that is split.
    """

    verb: str
    dtype: torch.dtype | None
    size: int = -1
    op: str = ""
    root: int = -1
    sizes: tuple[int, ...] = ()


class Communicator:
    """A group's transport. Implement `exchange`, or `all_gather` and `all_reduce`; override what you do better.

    Every other verb is composed from those. Whatever moves data without reducing it gets flat, contiguous
    uint8 tensors; whatever reduces gets flat, contiguous tensors of an op and dtype that the backend's
    `Capabilities.reductions` declares, "avg" included only if declared. Inputs are left unchanged unless said
    otherwise. Each verb starts its work and returns a `Pending`; a verb that is not overridden raises
    `UnsupportedError`; `recv_any`, which torch's programs may use, is composed from nothing. Ranks are those of the
    group. All ranks call the verbs of a group in the same order, `exchange` and `recv_any` alone excepted, which
    only pairs of ranks need to match.

    Attributes:
        blocking: whether its verbs, `exchange` and `recv_any` excepted, are done when they return: asynchronous ones
            are then called on a thread of the group, one after the other.
        own: which of its verbs it has, by name, where those are fewer than its class overrides; `exchange` and
            `recv_any` are among the names.
        even: which of its own verbs take equal parts alone: "all_to_all". Any other call of it is composed.
        native: one of torch's own backends, a `torch.distributed.Backend`, that carries the group. Torch's verbs on
            tensors of the group's device then go straight to it, and those on CPU tensors to gloo; torch shuts it
            down as it destroys the group, and `close` is called after that.
        messages: carries the messages of programs, `send` and `recv`, in this one's place: for one that has no
            `exchange`, or whose messages keep no tags apart, or whose order is that of its collectives. What verbs are
            composed from stays here. Whoever sets it aborts and closes it too.
        reductions: what its own reductions take, where that is not what the device's `Capabilities` declare.
        note: what carries the group, in words, for `devices.explain()`.
        ways: how it does its own verbs, in words, by the verb's name, for `devices.explain(group)`.
        predicted: how long its verbs are predicted to take, or which figure is missing for that, in words, for
            `devices.explain(group)`; or what returns those. "" where nothing is said.
        reduce_spares: whether its `reduce` leaves the tensors of all ranks but `dst` as they are.
        anew: up to so many bytes `all_reduced` costs less than a copy and an `all_reduce` in place; -1 if never.
        planned: schedules, the same on all ranks, that it has made for verbs of its group as it was opened.
    """

    blocking: ClassVar[bool] = False
    reduce_spares: ClassVar[bool] = False
    own: frozenset[str] | None = None
    even: frozenset[str] = frozenset()
    native: Any = None
    messages: Communicator | None = None
    reductions: Mapping[str, frozenset[torch.dtype]] | None = None
    note: str = ""
    ways: Mapping[str, str] = MappingProxyType({})
    predicted: str | Callable[[], str] = ""
    anew: int = -1
    planned: Sequence[Any] = ()

    def expect(self, call: Asked) -> None:
        """Hear what the verb that this thread calls next is for, so that it can be compared with the peers' calls.

        A communicator that compares overrides this and `agree`; the others are not told. Without a word before it, a
        verb is what it was called with.
        """

    def agree(self) -> None:
        """Compare what was expected with the peers at once: it is composed from other verbs, which come next."""

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        """Start all sends and receives together; neither waits for the other, so two ranks may send at once.

        It may be called from two threads at once: a user's message beside a verb that is composed from others.
        """
        raise _not_here(self, "exchange")

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
        """Fill `output` with every rank's `input`, in rank order: `output.numel() == size * input.numel()`."""
        raise _not_here(self, "all_gather")

    def all_reduce(self, tensor: torch.Tensor, op: str) -> Pending:
        """Replace `tensor` by the reduction over all ranks, the same bits on every rank."""
        raise _not_here(self, "all_reduce")

    def all_reduced(self, tensor: torch.Tensor, op: str) -> torch.Tensor:
        """Return what `all_reduce` would replace `tensor`, of at most `anew` bytes, by: a new tensor, already there."""
        raise _not_here(self, "all_reduced")

    def reduce_scatter(self, output: torch.Tensor, input: torch.Tensor, op: str) -> Pending:
        """Fill `output` with this rank's part of the reduced `input`: `input.numel() == size * output.numel()`."""
        raise _not_here(self, "reduce_scatter")

    def all_to_all(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_counts: Sequence[int],
        input_counts: Sequence[int],
    ) -> Pending:
        """Send `input_counts[i]` bytes of `input` to rank i and fill `output` with `output_counts[i]` from it."""
        raise _not_here(self, "all_to_all")

    def broadcast(self, tensor: torch.Tensor, src: int) -> Pending:
        """Replace `tensor` by that of rank `src`, NaNs and all."""
        raise _not_here(self, "broadcast")

    def reduce(self, tensor: torch.Tensor, dst: int, op: str) -> Pending:
        """Replace `tensor` on rank `dst` by the reduction; elsewhere it is then undefined, but for `reduce_spares`."""
        raise _not_here(self, "reduce")

    def gather(self, output: torch.Tensor | None, input: torch.Tensor, dst: int) -> Pending:
        """Fill `output` on rank `dst` with every rank's `input`, in rank order; elsewhere `output` is None."""
        raise _not_here(self, "gather")

    def scatter(self, output: torch.Tensor, input: torch.Tensor | None, src: int) -> Pending:
        """Fill `output` with this rank's part of rank `src`'s `input`; elsewhere `input` is None."""
        raise _not_here(self, "scatter")

    def permute(self, output: torch.Tensor | None, input: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> Pending:
        """Fill `output` on the second rank of each pair with the `input` of the first; it is None on other ranks."""
        raise _not_here(self, "permute")

    def recv_any(self, tensor: torch.Tensor, tag: int) -> PendingFrom:
        """Fill `tensor`, which is as a `Message`'s, with what the first rank to send something of that tag sends."""
        raise _not_here(self, "recv_any")

    def barrier(self) -> Pending:
        """Complete once every rank has called it."""
        raise _not_here(self, "barrier")

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks of the group that are still there after an error, and a new store that they share.

        All of those call it; it may wait for one to come or die. The group is not used any more.
        """
        raise _not_here(self, "survivors")

    def abort(self) -> None:
        """Make every verb that is waiting here fail soon; callable from any thread, more than once."""

    def close(self) -> None:
        """Give back what the communicator holds; callable more than once."""


class NotHereError(UnsupportedError):
    """A communicator does not have what was asked of it, and knows neither its rank nor its group."""


def _not_here(communicator: Communicator, verb: str) -> NotHereError:
    return NotHereError(f"{type(communicator).__name__} has no {verb} of its own.")
