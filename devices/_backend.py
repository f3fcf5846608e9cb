"""All that the author of a backend implements, and the plain data that passes through it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from devices.errors import CollectiveError, CollectiveTimeoutError, UnsupportedError

if TYPE_CHECKING:
    import torch

    from devices._interop import Interop
    from devices._store import Store
    from devices.topology.graph import Topology

INTERFACE_VERSION = 1
"""The version of the plugin interface that this file states; a backend declares the one it was written for."""

REDUCE_OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
"""The reduce ops, spelt as torch spells them in lower case."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend's hardware is here, and the reason, in words that a user can act on."""

    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Link:
    """A direct link from one device to another.

    Args:
        peer: the other device, as `str(device)` prints it.
        kind: what it is, for instance "nvlink" or "pcie".
        bandwidth: bytes per second in one direction; None when unknown.
        latency: seconds; None when unknown.
    """

    peer: str
    kind: str
    bandwidth: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """One device of one backend.

    Args:
        backend: the backend's name; not a torch device type (a Trainium3 is of type "neuron").
        type: torch's device type.
        index: torch's device index.
        name: what its maker calls it.
        memory: bytes of memory in all; None when unknown.
        free: bytes of it that were free when asked; None when unknown.
    """

    backend: str
    type: str
    index: int
    name: str = ""
    memory: int | None = None
    free: int | None = None

    def __str__(self) -> str:
        return f"{self.backend}:{self.index}"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment that a rank is to be started with.

    Args:
        name: of the variable.
        value: what to set it to.
        why: what it is for, in words, for whoever reads it in a script.
    """

    name: str
    value: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device and its communicator can do, as data. What is not declared here is composed or refused.

    Args:
        dtypes: the dtypes that tensors on the device may have; all of them can be moved.
        reductions: for each reduce op, the dtypes that the communicator's own `all_reduce`, `reduce` and
            `reduce_scatter` take. Any other op and dtype is composed.
        group_sizes: the legal group sizes; None when every size is legal. A group of one, which opens nothing, always
            is.
        group_size_multiple: every multiple of this is legal beside `group_sizes`.
        max_groups: how many groups of more than one rank may be open at once in a process; None for no limit.
        max_streams: how many streams the device runs at once; None for no limit.
        links: the device's links to other devices.
        messages: how `send` and `recv` go where the devices have no messages of their own that programs could use:
            "staged", through host memory; "" where they are the communicator's own, if it has any.
    """

    dtypes: frozenset[torch.dtype]
    reductions: Mapping[str, frozenset[torch.dtype]] = field(default_factory=lambda: MappingProxyType({}))
    group_sizes: frozenset[int] | None = None
    group_size_multiple: int | None = None
    max_groups: int | None = None
    max_streams: int | None = None
    links: tuple[Link, ...] = ()
    messages: str = ""

    def allows_group_of(self, size: int) -> bool:
        """Return whether a group of `size` ranks is legal."""
        if self.group_sizes is None:
            return True
        multiple = self.group_size_multiple
        return size in self.group_sizes or (multiple is not None and size % multiple == 0)


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that a communicator is opened over, seen from one of them.

    Args:
        ranks: the members' ranks in the world, in the group's order.
        rank: this member's place in `ranks`.
        device: the device that this rank's tensors live on.
        store: shared by the members; carries JSON.
        timeout: how long a verb may wait for its peers.
        name: the same on every member, unique in the world.
    """

    ranks: tuple[int, ...]
    rank: int
    device: Device
    store: Store
    timeout: timedelta
    name: str

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.ranks)

    def hear(self, key: str, rank: int) -> Any:
        """Return what a member says by setting `key` in the store, having waited for it up to the group's timeout.

        Args:
            key: the key.
            rank: who sets it.

        Raises:
            CollectiveError: it says nothing, and a member has died.
            CollectiveTimeoutError: it says nothing in time.
        """
        seconds = self.timeout.total_seconds()
        try:
            has_come = self.store.comes(key, seconds)
        except CollectiveError as error:
            raise CollectiveError(f"{self}: {error}") from error
        if not has_come:
            raise CollectiveTimeoutError(
                f"{self}: the group was not opened within {seconds:g} s: rank {self.ranks[rank]} did not come; every "
                "rank makes all groups, its own and the others', in one order"
            )
        return self.store.get(key)

    def share(self, key: str, value: Any) -> list[Any]:
        """Tell the members `value`, which is JSON, and return what each of them told under that key, by rank.

        Raises:
            CollectiveError: one told nothing, and a member has died.
            CollectiveTimeoutError: one told nothing in time.
        """
        self.store.set(f"{key}/{self.rank}", value)
        return [self.hear(f"{key}/{rank}", rank) for rank in range(self.size)]

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} in group {self.name!r}"


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
        reduce_spares: whether its `reduce` leaves the tensors of all ranks but `dst` as they are.
        anew: up to so many bytes `all_reduced` costs less than a copy and an `all_reduce` in place; -1 if never.
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
    anew: int = -1

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


class Backend(abc.ABC):
    """One kind of hardware. Building one is cheap and touches no hardware.

    Attributes:
        name: what users call it; no two plugins may share one.
        device_type: torch's type of its devices; several backends may share one.
        priority: "auto" takes the present backend with the highest; None is chosen only by name.
        interface: the version of this interface that it was written for; who says nothing means the first.
        verified: what it has run on, for `devices doctor`; say so if it has never run on hardware.
        thread_ranks: whether several ranks of one group may be threads of one process, each opening its own
            communicator there. They run at the same time, and a verb may block its thread.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    priority: ClassVar[int | None] = 100
    interface: ClassVar[int] = 1
    verified: ClassVar[str] = "not run on hardware"
    thread_ranks: ClassVar[bool] = False

    @abc.abstractmethod
    def probe(self) -> Probe:
        """Return whether the hardware is here and why: within a second, no context opened, nothing heavy imported."""

    @abc.abstractmethod
    def devices(self) -> Sequence[Device]:
        """Return the devices that this process may use, in index order; none if `probe` says absent."""

    @abc.abstractmethod
    def capabilities(self, device: Device) -> Capabilities:
        """Return what `device` can do: equal for equal devices, whenever asked."""

    def reach(self, device: Device) -> str:
        """Return what all devices have in common that this backend's own groups reach as one domain.

        It is asked where a group has ranks of several backends. "", which a method that is not overridden returns,
        says that a group of this backend carries its devices wherever they are.
        """
        return ""

    def topology(self) -> Topology | None:
        """Return the graph of this host's devices of this backend, switches included, as `devices.topology` has it.

        A device's node is named as `str(device)` prints it. None, which a method that is not overridden returns, says
        that no more is known than `Capabilities.links`; where there is a topology, those links are not added to it.
        """
        return None

    def launch_environment(self, ranks: int | None = None, local_rank: int | None = None) -> Sequence[Variable]:
        """Return the variables that a program's ranks on this host are to be started with, for `devices env`.

        Args:
            ranks: how many there are on this host; as many as there are devices if None.
            local_rank: the rank whose own variables to return; those that are the same for all ranks if None. A rank
                asks for them when its peers may have been started already, and must be told what they are told.

        Raises:
            UnsupportedError: so many ranks cannot be started here; or, whether present or not, there is no hardware
                to say it for.
        """
        return ()

    def contradictions(self) -> Sequence[str]:
        """Return a sentence for each setting here that contradicts another one or the hardware, for `devices doctor`.

        It says what is set, what that contradicts and what to do. Asked of a backend that is absent too: within a
        second, no context opened, nothing heavy imported.
        """
        return ()

    def interop(self) -> Interop | None:
        """Return the fabric by which this backend's devices and those of others reach each other's memory, if any.

        Asked whether the hardware is here or not, by what emulates ranks of several kinds.
        """
        return None

    def bind(self, device: Device) -> None:
        """Make `device` the one that this process works on, before any group opens; `devices.init` calls it once.

        To be overridden where torch has no module for the device before something is imported, or where the device
        becomes the current one by the opening of a group.
        """
        if device.type != "cpu":
            import torch

            torch.get_device_module(device.type).set_device(device.index)

    @abc.abstractmethod
    def open(self, group: Group) -> Communicator:
        """Return a communicator over `group`; every member calls this, and it may wait for the others."""
