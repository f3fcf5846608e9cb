"""The backend of one rank among ranks of several kinds: the domains that they are in, over memory that all share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch

from devices._backend import Backend, Capabilities, Communicator, Device, Group, Message, Pending, PendingFrom, Probe
from devices._interop import Interop, Shared, Side
from devices._staged import open_host
from devices.domains import open_domains
from devices.domains.predicted import by_fabric
from devices.fabric.communicator import REDUCTIONS
from devices.testing._mixed import Mixed
from devices.testing._thread_backend import DTYPES


@final
class MixedBackend(Backend):
    """One rank's.

    Args:
        mixed: the kinds of ranks.
        rank: which one of the world.
        share: returns the memory that the ranks of a group share; or why there is none, and then the CPU backend
            carries the ranks of one kind.
        interop: what joins this rank with those of other kinds, where each rank's world asks for that itself.
        is_process: whether each rank is a process, whose world opens groups of its own kind alone here.
    """

    # A world asks for these; they are the target's.
    name = ""
    device_type = "cpu"
    priority = None
    verified = "an emulation, which runs on every machine"

    def __init__(
        self,
        mixed: Mixed,
        rank: int,
        share: Callable[[Group], Shared | str],
        interop: Interop | None = None,
        *,
        is_process: bool = False,
    ) -> None:
        self._mixed = mixed
        self._rank = rank
        self._side = next(side for side in mixed.sides if rank in side.ranks)
        self._share = share
        self._interop = interop
        self._is_process = is_process
        self._target = mixed.target_of(rank)
        self.name = str(self._target)  # type: ignore[misc]  # of the class, for all others

    def probe(self) -> Probe:
        return Probe(present=True, reason=f"emulated, as rank {self._rank} of {self._mixed}")

    def devices(self) -> Sequence[Device]:
        return (Device(self.name, "cpu", self._side.ranks.index(self._rank), f"{self._target.title}, emulated"),)

    def capabilities(self, device: Device) -> Capabilities:
        limits = self._mixed.seen(self._target).limits
        if limits.dtypes is None and limits.moved_dtypes is None:
            return Capabilities(frozenset(), REDUCTIONS)
        has = [names for names in (limits.dtypes, limits.moved_dtypes) if names is not None]
        dtypes = {dtype for dtype in DTYPES if all(str(dtype).removeprefix("torch.") in names for names in has)}
        return Capabilities(frozenset(dtypes), REDUCTIONS)

    def interop(self) -> Interop | None:
        return self._interop

    def open(self, group: Group) -> Communicator:
        found = self._open(group)
        if (interop := self._mixed.interop) is not None:
            found.predicted = partial(by_fabric, interop, self._sides_of(group), self._mixed.assumed)
        return found

    def _open(self, group: Group) -> Communicator:
        mixed = self._mixed
        domains = mixed.domains_of(self._sides_of(group))
        if len(domains) == 1:
            return self._open_domain(group)
        [mine] = [domain for domain in domains if any(group.rank in side.ranks for side in domain)]
        # Its first rank, which is the same on all of them and in no other.
        key = f"{min(rank for side in mine for rank in side.ranks)}"
        name = " and ".join(str(mixed.targets[self._place(side)]) for side in mine)
        return open_domains(group, key, name, self._open_domain, partial(self._open_bridge, domains))

    def _sides_of(self, group: Group) -> list[Side]:
        """Return the kinds of a group's ranks."""
        if self._is_process:
            # Whoever is left after an error is numbered anew.
            return [Side(self._side.target, tuple(range(group.size)))]
        return self._mixed.sides_of(group.ranks)

    def _place(self, side: Side) -> int:
        return next(place for place, each in enumerate(self._mixed.sides) if each.target == side.target)

    def _open_domain(self, group: Group) -> Communicator:
        """Open a group, all of whose ranks are in one domain."""
        mixed, shared = self._mixed, self._share(group)
        if isinstance(shared, str):
            return open_host(group)
        if mixed.interop is None:
            communicator = shared.carry(shared.fabric, False)
            communicator.note = "memory, as its own links would be"
            return communicator
        return mixed.interop.open(group, self._sides_of(group), shared, mixed.assumed)

    def _open_bridge(self, domains: Sequence[Sequence[Side]], group: Group) -> Communicator:
        """Open the messages between all ranks of a group."""
        shared = self._share(group)
        assert not isinstance(shared, str), "where there may be none, each world has a bridge of its own"
        [mine] = [domain for domain in domains if any(group.rank in side.ranks for side in domain)]
        near = {rank for side in mine for rank in side.ranks}
        mixed = self._mixed
        bridge = _Bridge(shared.carry(shared.fabric, False), near, partial(mixed.crossed, self._rank))
        bridge.note = (
            "messages, as their networks would carry" if mixed.interop is None else mixed.interop.bridge(mixed.assumed)
        )
        return bridge


@final
class _Bridge(Communicator):
    """Messages between domains, and nothing else: what goes to another domain is counted.

    Args:
        messages: carries them.
        near: the ranks of the group that are in this rank's domain.
        crossed: called with the bytes that go to others.
    """

    def __init__(self, messages: Communicator, near: set[int], crossed: Callable[[int], None]) -> None:
        self._messages, self._near, self._crossed = messages, near, crossed

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        if far := sum(send.tensor.nbytes for send in sends if send.peer not in self._near):
            self._crossed(far)
        return self._messages.exchange(sends, recvs)

    def recv_any(self, tensor: torch.Tensor, tag: int) -> PendingFrom:
        return self._messages.recv_any(tensor, tag)

    def abort(self) -> None:
        self._messages.abort()

    def close(self) -> None:
        self._messages.close()
