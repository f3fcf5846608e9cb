"""`init()`: open the world, of torchrun's ranks or of one, on the backend that fits."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from devices import _autoload, _choice, _observing, _torch_groups
from devices._backend import Group
from devices._explain import explain_group, lacking
from devices._mesh import mesh_shape
from devices._mesh_order import order_here, order_on
from devices._open import my_device
from devices._store import Store
from devices.c10d.lanes import abort_native, close_destroyed, lanes_of
from devices.calls.groups import GroupLike
from devices.errors import (
    ArgumentError,
    CollectiveError,
    DevicesError,
    MeshError,
    PluginError,
    TopologyError,
    UnsupportedError,
    WorldError,
)
from devices.fabric.host import open_here
from devices.meeting.dtypes import check_dtypes, forget, names_of
from devices.meeting.launch import launch
from devices.meeting.rendezvous import keep, shared_store, tell_the_other_first
from devices.meeting.roll_call import call_the_roll, check_alone, gone_from_world, remember_world
from devices.meeting.secret import authenticate, authentication, secret

if TYPE_CHECKING:
    from devices._backend import Device
    from devices.topology.graph import Topology

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LONGEST = timedelta(days=36_500)
"""The clocks of C++ that torch waits by count nanoseconds, and overflow after some 292 years."""

_open: WeakKeyDictionary[dist.ProcessGroup, World] = WeakKeyDictionary()
"""The open world over each default process group that torch has: one, unless torch keeps one for each thread."""


@final
class World:
    """All ranks of a program, seen from this one. A context manager: leaving it closes the world.

    Attributes:
        rank: this process's rank, 0 to size - 1.
        size: the number of ranks.
        device: the `torch.device` that this rank's tensors belong on.
        backend: the backend's name.
    """

    def __init__(self, choice: _choice.Choice, device: Device, *, owns_group: bool, note: str) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.backend = choice.backend.name
        self.device = torch.device(device.type) if device.type == "cpu" else torch.device(device.type, device.index)
        self._owns_group = owns_group
        self._choice = choice
        self._note = note
        self._name = str(device)
        # What prints an uncaught error: the hook before this world, and torch's, which puts the rank before each line.
        self._hooks: tuple[Any, Any] = (None, None)

    def mesh(
        self,
        axes: Mapping[str, int],
        *,
        topology: Topology | None = None,
        traffic: Mapping[str, int | float] | None = None,
    ) -> DeviceMesh:
        """Return a `DeviceMesh` of all ranks with the named axes, the last one varying fastest.

        Where the topology of the ranks' devices is known, the ranks have those places in which the traffic of all axes
        is predicted to take least; elsewhere their order is that of their numbers.

        Args:
            axes: the length of each axis; one may be -1 and takes what the others leave.
            topology: of the ranks' devices, in their order; what the backend knows of this host if not said.
            traffic: bytes that each axis moves, in proportion; the last axis has by far the most if not said.

        Raises:
            MeshError: the lengths do not multiply to the world's size, or the topology has other devices.
            TopologyError: the topology that is given is not connected, or lacks a bandwidth.
            WorldError: the world is closed.

        >>> import devices
        >>> with devices.init() as world:
        ...     world.mesh({"dp": -1, "tp": 1}).shape
        (1, 1)
        """
        self._check_open()
        try:
            shape = mesh_shape(axes, self.size)
            lengths = dict(zip(axes, shape, strict=True))
            order = None if topology is None else order_on(topology, lengths, self.size, traffic)
        except (ArgumentError, MeshError, TopologyError) as error:
            raise type(error)(f"rank {self.rank} of {self.size}: {error}") from None
        if order is None:
            lanes = lanes_of(_default_group())
            if lanes is not None and lanes.mixed is not None and not lanes.mixed.is_native(range(self.size)):
                # What one backend knows of its devices, the ranks of another do not.
                order = tuple(range(self.size))
            else:
                backend = self._choice.backend
                order = order_here(backend, self._name, lengths, self.rank, self.size, self.device, traffic)
        if order == tuple(range(self.size)):
            return init_device_mesh(self.device.type, shape, mesh_dim_names=tuple(axes))
        return DeviceMesh(self.device.type, torch.tensor(order).view(shape), mesh_dim_names=tuple(axes))

    def close(self) -> None:
        """Close the world: its groups are given back. Closing twice does nothing."""
        if not self._is_open:
            return
        del _open[_default_group()]
        if self._owns_group:
            if sys.excepthook is self._hooks[1]:
                sys.excepthook = self._hooks[0]
                open_here.unhook(self._hooks[0])
            _destroy_all()

    def recover(self) -> World:
        """Return a new world of the ranks that are still there, after an error has closed this one for good.

        Each of them calls it, and it waits until every other one has, or has died. They keep their order and are
        numbered anew; meshes and groups are to be made again, and what this world's tensors hold is theirs to say.

        Raises:
            UnsupportedError: the backend cannot; the CPU's, Neuron's and worlds of several backends can.
            CollectiveTimeoutError: a rank neither died nor came within the timeout.
            WorldError: the world is closed.
        """
        self._check_open()
        group = _default_group()
        lanes = lanes_of(group)
        if lanes is None or not self._owns_group:
            raise UnsupportedError(
                f"rank {self.rank} of {self.size}: a process group that was adopted is not recovered"
            )
        ranks, store = lanes.survivors()
        timeout = lanes.group.timeout
        with contextlib.suppress(CollectiveError):
            # What was under way in its groups is lost, and known to be.
            self.close()
        note = f"ranks {', '.join(map(str, ranks))} of a world of {self.size} went on after an error"
        rank, size = ranks.index(self.rank), len(ranks)
        authenticate(store.torch, rank, size)
        world = _open_world(self._choice, _my_device(self._choice), store.torch, rank, size, timeout, note)
        _open[_default_group()] = world
        return world

    def explain(self) -> str:
        """Return which backend was chosen and why, how the ranks found each other, and what carries their messages."""
        lanes = lanes_of(_default_group()) if self._is_open else None
        carried = f"; {lanes.note}" if lanes is not None and lanes.note else ""
        lines = [f"{self._choice}\nrank {self.rank} of {self.size} on {self.device}: {self._note}{carried}"]
        return "\n".join([*lines, *(lacking(lanes) if lanes is not None else [])])

    @property
    def _is_open(self) -> bool:
        """Whether this world was not closed, nor its process group destroyed without us."""
        return _current() is self

    def _check_open(self) -> None:
        if not self._is_open:
            raise WorldError(f"rank {self.rank} of {self.size}: this world is closed; open another by devices.init()")

    def __enter__(self) -> World:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            open_here.tell(error)
            if self._is_open and self._owns_group:
                abort_native()
        self.close()

    def __repr__(self) -> str:
        state = "" if self._is_open else ", closed"
        return f"World(rank={self.rank}, size={self.size}, backend={self.backend!r}, device={self.device}{state})"


def init(backend: str = "auto", *, timeout: timedelta | float = 600.0, dtypes: Iterable[torch.dtype] = ()) -> World:
    """Open the world and return it.

    The ranks are those of torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or this process
    alone when none is set. A process group that torch already has is adopted as it is, and left open by `close`.

    Args:
        backend: a backend's name, or "auto" for the best that is present; see `explain`. The variable
            DEVICES_BACKEND, when set, is what "auto" means.
        timeout: how long the ranks wait for each other here, and a verb may for its peers: a timedelta, or seconds. The
            verbs of a process group that is adopted keep the timeout that it has.
        dtypes: those that the program's tensors have, the same on all ranks. Where the devices of some ranks lack one,
            no rank opens the world; without this a verb with such a tensor is refused when it is called.

    Raises:
        WorldError: a world is open already, or torchrun's variables are incomplete or contradict each other.
        UnsupportedError: some ranks lack one of `dtypes`; the message says which, and who has it.
        BackendNotFoundError: no plugin provides `backend`.
        BackendUnavailableError: its hardware is not here.

    >>> import devices
    >>> with devices.init() as world:
    ...     (world.rank, world.size)
    (0, 1)
    """
    _observing.begin()
    if (already := _current()) is not None:
        raise WorldError(f"{already!r} is open; close it before you open another")
    limit, needs = _limit(timeout), names_of(dtypes)
    if needs and (observer := _observing.observer()) is not None:
        observer.needs(needs)
    world = _adopt(backend, limit, needs) if dist.is_initialized() else _launch(backend, limit, needs)
    _open[_default_group()] = world
    return world


def init_on(choice: _choice.Choice, *, timeout: float) -> World:
    """Open the world of torchrun's ranks, as `init` does, on a backend that no plugin provides."""
    world = _launch(choice, _limit(timeout))
    _open[_default_group()] = world
    return world


def _limit(timeout: timedelta | float) -> timedelta:
    """Return a timeout as torch takes one."""
    if not isinstance(timeout, (timedelta, int, float)):
        raise ArgumentError(f"timeout={timeout!r} is neither a timedelta nor a number of seconds")
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    # Not a number is neither.
    if not seconds > 0:
        raise ArgumentError(f"timeout must be positive, got {timeout!r}")
    if seconds > _LONGEST.total_seconds():
        raise ArgumentError(f"timeout must be at most {_LONGEST.days} days, got {timeout!r}; there is none without end")
    return timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)


def _current() -> World | None:
    """Return the open world, if there is one."""
    group = dist.group.WORLD
    return None if group is None else _open.get(group)


def _destroy_all() -> None:
    """Close all of torch's groups, also where one raises as it closes: torch gives up at the first that does."""
    first: DevicesError | None = None
    while dist.is_initialized():
        try:
            dist.destroy_process_group()
        except DevicesError as error:
            # It is closed now, and does not raise again.
            first = first or error
        except RuntimeError as error:
            # A vendor's group, which waits for what is under way as it is closed, and could not.
            _torch_groups.abort_all()
            first = first or CollectiveError(f"the world's groups could not be closed, and were aborted: {error}")
            first.__cause__ = first.__cause__ or error
    close_destroyed()
    if first is not None:
        raise first


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def _launch(asked: str | _choice.Choice, timeout: timedelta, needs: tuple[str, ...] = ()) -> World:
    """Return a world over a process group of our own."""
    # The ranks meet before the choice only where it depends on what one of them finds out for all of its host.
    meet = functools.cache(lambda: _rendezvous(timeout, needs))
    if isinstance(asked, _choice.Choice):
        choice = asked
    else:
        choice = told.choice if (told := launch()) else _choice.choose(asked, lambda: Store(meet()[0]))
    _autoload.register()
    # Without a launcher this is a world of one, which may have the device that it likes best.
    device = _my_device(choice, is_alone="RANK" not in os.environ)
    store, rank, size, note = meet()
    gone = gone_from_world(range(size), rank) if launch() is None else None
    _check_dtypes(needs, choice, device, Store(store, gone), rank, size, timeout)
    return _open_world(choice, device, store, rank, size, timeout, note)


def _check_dtypes(
    needs: tuple[str, ...],
    choice: _choice.Choice,
    device: Device,
    store: Store,
    rank: int,
    size: int,
    timeout: timedelta,
) -> None:
    """Raise on every rank unless the devices of all have the dtypes of these names."""
    if not needs:
        return
    # A store may see several worlds, or the same one be adopted several times.
    openings = f"dtypes/openings/{rank}"
    own = store.under(f"dtypes/{store.add(openings, 1)}")
    try:
        check_dtypes(Group(tuple(range(size)), rank, device, own, timeout, "world"), choice.backend, needs)
    except (UnsupportedError, WorldError):
        # Every rank raises it, so that all count on alike.
        raise
    except BaseException as error:
        # Another try of this rank alone must meet the others' first, who must find nothing of this one.
        try:
            store.add(openings, -1)
            forget(own, rank)
        except Exception as lost:
            error.add_note(f"nor could the store be told that this rank has given up: {lost}")
        raise


def _my_device(choice: _choice.Choice, *, is_alone: bool = False) -> Device:
    """Return this process's device, which torch then makes its tensors on."""
    # One that is no number is an error of who reads it to meet the others.
    rank = os.environ.get("RANK", "0")
    device = my_device(choice.backend, int(rank) if rank.isdecimal() else 0, is_alone=is_alone)
    try:
        choice.backend.bind(device)
    except DevicesError:
        raise
    except Exception as error:
        raise PluginError(
            f"backend {choice.backend.name!r} could not make {device} the current one: {error}"
        ) from error
    return device


def _open_world(
    choice: _choice.Choice, device: Device, store: dist.Store, rank: int, size: int, timeout: timedelta, note: str
) -> World:
    hook = sys.excepthook
    dist.init_process_group("devices", store=store, rank=rank, world_size=size, timeout=timeout, pg_options=choice)
    world = World(choice, device, owns_group=True, note=note)
    world._hooks = hook, sys.excepthook
    return world


def _rendezvous(timeout: timedelta, needs: tuple[str, ...] = ()) -> tuple[dist.Store, int, int, str]:
    """Return a store shared by all ranks, this rank, the number of ranks, and how they met."""
    if told := launch():
        return told.store, told.rank, told.size, told.note
    given = [name for name in _TORCHRUN if name in os.environ]
    if not given:
        return dist.HashStore(), 0, 1, "no launcher, so a world of one"
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        raise WorldError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} set, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not; launch by torchrun, which sets them all, or unset them "
            "for a world of one"
        )
    rank, size, port = (_whole_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not 0 <= rank < size:
        raise WorldError(f"RANK is {rank} and WORLD_SIZE is {size}; ranks go from 0 to WORLD_SIZE - 1")
    host = os.environ["MASTER_ADDR"]
    address, thinks = f"{host}:{port}", {"WORLD_SIZE": size, "DEVICES_SECRET": "set" if secret() else "not set"}
    thinks["dtypes"] = ", ".join(needs)
    try:
        store = shared_store(host, port, rank, timeout)
        # What does not open has no next: where rank 0 tries again, the others may not have come yet.
        keep(None, rank)
        store.set_timeout(timeout)
        # A second world of the same ranks must not read the first one's keys.
        opening = store.add(f"devices/openings/{rank}", 1)
        found, before = (dist.PrefixStore(f"devices/{number}", store) for number in (opening, opening - 1))
        if opening > 1:
            check_alone(found, before, rank, size)
        remember_world(call_the_roll(found, f"the world at {address}", range(size), rank, thinks, timeout))
        authenticate(found, rank, size)
        keep(store, rank)
    except (dist.DistError, TimeoutError, ValueError) as error:
        said = str(error).partition("\n")[0]
        if rank == 0 and "EADDRINUSE" in said:
            tell_the_other_first(host, port, size, timeout)
        raise WorldError(f"rank {rank} of {size}: the ranks cannot meet at {address}: {said}") from error
    return found, rank, size, f"{size} ranks met at {address}; {authentication()}"


def _whole_number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise WorldError(f"{name} is {os.environ[name]!r}, not a whole number") from None


def _adopt(asked: str, timeout: timedelta, needs: tuple[str, ...]) -> World:
    """Return a world over the process group that torch has already."""
    group = _default_group()
    choice = told.choice if (told := launch()) else _choice.choose(asked, lambda: Store(group.get_group_store()))
    rank, size = dist.get_rank(), dist.get_world_size()
    if (lanes := lanes_of(group)) is not None:
        if asked not in ("auto", lanes.choice.backend.name) and launch() is None:
            raise WorldError(
                f"torch's process group is of backend {lanes.choice.backend.name!r}, but {asked!r} was asked for; "
                "call devices.init() first, or ask for 'auto'"
            )
        own = lanes.group
        _check_dtypes(needs, lanes.choice, own.device, own.store, rank, size, min(timeout, own.timeout))
        note = f"torch's process group was adopted; {authentication()}"
        return World(lanes.choice, own.device, owns_group=False, note=note)
    device = my_device(choice.backend)
    _check_dtypes(needs, choice, device, Store(group.get_group_store()), rank, size, timeout)
    note = f"torch's {dist.get_backend()!r} process group was adopted; its own verbs carry ours"
    return World(choice, device, owns_group=False, note=note)


def explain(group: GroupLike = None) -> str:
    """Return what was found, what was chosen and why, as text: of the open world, else of what `init()` would choose.

    Args:
        group: a mesh axis or a process group: of that, which domains it has, what carries it inside of them and between
            them, and how each verb goes.

    >>> import devices
    >>> print(devices.explain())  # doctest: +ELLIPSIS
    backend ...
    """
    if group is not None:
        return explain_group(group)
    world = _current()
    return world.explain() if world is not None else str(_choice.choose())
