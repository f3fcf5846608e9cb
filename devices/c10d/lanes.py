"""A group's lanes: the verbs over its devices, and those over the CPU beside them, whatever torch's group is made of.

torch's group is our `DevicesGroup`, which has its lanes; or, where a vendor's own process group carries the devices, a
plain `dist.ProcessGroup`, which cannot be told anything: its lanes are remembered here.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, final

import torch.distributed as dist

from devices import _choice, _observing, _registry, _torch_groups
from devices._backend import Group
from devices._open import open_verbs, open_verbs_across
from devices._store import Store
from devices.algorithms.observed import AnyVerbs
from devices.algorithms.verbs import Verbs
from devices.domains.recovery import beside_a_world
from devices.errors import ArgumentError, WorldError
from devices.meeting.vendors import Mixed


@final
class Lanes:
    """The verbs of a group by the type of device that the tensors are on.

    Args:
        group: the members, seen from this rank; its device is that of the chosen backend.
        choice: the backend that was chosen, and why.
        mixed: what the ranks of the world are, where they are of several backends, or of one that has not all groups of
            them; None elsewhere.
    """

    def __init__(self, group: Group, choice: _choice.Choice, mixed: Mixed | None = None) -> None:
        self.group = group
        self.choice = choice
        self.mixed = mixed
        self.is_closed = False
        observer = _observing.observer()
        if observer is not None:
            observer.opening(group, is_world=not dist.is_initialized())
        self.opened: dict[str, Verbs] = {group.device.type: self._open_own()}
        if "cpu" in self.kinds and group.device.type != "cpu":
            try:
                # Now, when all ranks are here: the first CPU tensor may be that of a message between two of them.
                self.opened["cpu"] = self._open_cpu()
            except BaseException:
                # A vendor's group that is not aborted waits for its peers as it closes.
                self.abort()
                self.close()
                raise

    def _open_own(self) -> Verbs:
        if self.mixed is None:
            return open_verbs(self.choice.backend, self.group)
        return open_verbs_across(self.choice.backend, self.group, self.mixed)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of devices whose tensors the group carries on this rank.

        In a group with ranks on CPUs, whose CPU tensors are those on their own device, another rank has none but its
        own: both would be one call to its peers.
        """
        own = self.group.device.type
        return (own,) if own == "cpu" or self._cpu_ranks() else ("cpu", own)

    def _cpu_ranks(self) -> tuple[int, ...]:
        """Return the ranks of a group of several backends whose own device is the CPU."""
        return () if self.mixed is None else self.mixed.vendors.on_cpu(self.group.ranks)

    def verbs_on(self, device_type: str, *, is_ours: bool = False) -> AnyVerbs:
        """Return the verbs over tensors on devices of that type, for torch's calls or for ours."""
        verbs = self.opened.get(device_type)
        if verbs is None:
            raise self.stranger(device_type)
        return _observing.observed(verbs, is_ours=is_ours) if _observing.is_on else verbs

    def stranger(self, device_type: str) -> ArgumentError:
        """Return the error of a tensor on a device of a type that the group does not carry."""
        group = self.group
        if device_type == "cpu" and (cpus := self._cpu_ranks()):
            return ArgumentError(
                f"{group}: the tensor is on 'cpu', but each rank of this group passes tensors on its own device, which "
                f"here is {group.device.type}:{group.device.index} and on rank {cpus[0]} the CPU; move the tensor there"
            )
        return ArgumentError(
            f"rank {group.rank} of {group.size}: the tensor is on {device_type!r}, but group {group.name!r} is of "
            f"backend {self.choice.backend.name!r} on {group.device.type!r}; move the tensor there"
        )

    def _open_cpu(self) -> Verbs:
        """Open the CPU path of an accelerator's group."""
        group, backend = self.group, _registry.of_device_type("cpu")
        device = backend.devices()[0]
        store, name = group.store.under("cpu"), f"{group.name}/cpu"
        with beside_a_world():
            return open_verbs(backend, Group(group.ranks, group.rank, device, store, group.timeout, name))

    @property
    def native(self) -> Any:
        """Torch's own backend that carries the group's devices; None where there is none."""
        return self.opened[self.group.device.type].native

    @property
    def note(self) -> str:
        """What carries the group, in words; "" where its backend says nothing."""
        note = self.opened[self.group.device.type].note
        if self.native is None:
            return note
        beside = "" if self.group.device.type == "cpu" else ", those on CPU tensors to gloo"
        return f"{note or self.native.name()}; torch's own verbs go straight to it{beside}"

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks of the group that are still there after an error, and a store that they share."""
        return self.opened[self.group.device.type].survivors()

    def abort(self) -> None:
        """Make every verb that is waiting fail soon."""
        for verbs in list(self.opened.values()):
            verbs.abort()

    def close(self) -> None:
        """Give everything back; whatever is called after that is an error. Callable more than once."""
        if not self.is_closed and (observer := _observing.observer()) is not None:
            observer.closed(self.group)
        self.is_closed = True
        with contextlib.ExitStack() as closing:
            # An error of one keeps none of the others open.
            for verbs in reversed(self.opened.values()):
                closing.callback(verbs.close)


_native: dict[int, tuple[weakref.ref[dist.ProcessGroup], Lanes]] = {}
"""The lanes of torch's plain groups, by `id`: what is looked up at each call is to cost little."""


def lanes_of(group: object) -> Lanes | None:
    """Return the lanes of a group that is of ours; None for torch's own."""
    # A group that torch has destroyed may be kept by whoever asked for it, closed.
    found: Lanes | None = getattr(group, "lanes", None)
    if found is None and (native := _native.get(id(group))) is not None:
        return native[1]
    return found


def native_verbs(group: dist.ProcessGroup, device_type: str) -> AnyVerbs | None:
    """Return our verbs over torch's plain group, for our calls; None where it is none of ours.

    Raises:
        WorldError: torch has destroyed the group.
    """
    native = _native.get(id(group))
    if native is None:
        return None
    lanes = native[1]
    if lanes.is_closed or not _torch_groups.is_open(group):
        lanes.close()
        raise WorldError(f"{lanes.group}: the group is closed")
    return lanes.verbs_on(device_type, is_ours=True)


def native_group(lanes: Lanes) -> dist.ProcessGroup:
    """Return torch's plain process group around the vendor's backend that carries these lanes."""
    close_destroyed()
    group, device = lanes.group, lanes.group.device
    try:
        made = _torch_groups.process_group_around(
            lanes.native, device.type, device.index, group.store.torch, group.rank, group.size, group.timeout
        )
    except BaseException:
        lanes.close()
        raise
    key = id(made)

    def forget() -> None:
        _native.pop(key, None)
        lanes.close()

    # What is open when the process ends torch ends, or nobody.
    weakref.finalize(made, forget).atexit = False
    _native[key] = weakref.ref(made), lanes
    return made


def native_lanes() -> list[tuple[dist.ProcessGroup, Lanes]]:
    """Return torch's plain groups that are of ours, with their lanes."""
    return [(group, lanes) for ref, lanes in list(_native.values()) if (group := ref()) is not None]


def close_destroyed() -> None:
    """Close the lanes of what torch has destroyed: it tells a plain group's own backends alone."""
    for group, lanes in native_lanes():
        if not lanes.is_closed and not _torch_groups.is_open(group):
            lanes.close()


def abort_native() -> None:
    """Abort all groups that vendors' own backends carry: to close one is to wait for what is under way in it."""
    opened = [lanes for _, lanes in native_lanes() if not lanes.is_closed]
    with _torch_groups.abort_together([lanes.native for lanes in opened]):
        for lanes in opened:
            lanes.abort()
