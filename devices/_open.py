"""Opening a backend over a group: which device is mine, may a group have that size, and then the verbs over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from devices._backend import Backend, Capabilities, Communicator, Device, Group
from devices.algorithms.verbs import Verbs
from devices.domains.mixed import open_mixed
from devices.errors import BackendUnavailableError, DevicesError, PluginError, UnsupportedError
from devices.meeting.launch import launch
from devices.meeting.vendors import Mixed
from devices.roster.answers import capabilities_of, devices_of
from devices.roster.plugin import shown

T = TypeVar("T")


def my_device(backend: Backend, rank: int = 0, *, is_alone: bool = False) -> Device:
    """Return the device of `backend` that this process is to use.

    That is the one of its LOCAL_RANK; where no launcher has said that, the one that the program has made the current
    one; else, of a program of one process, the one with most free memory, and of others the one of the rank.

    Args:
        backend: whose.
        rank: this process's, among all.
        is_alone: whether the program has this process alone.
    """
    devices = _asked(backend, devices_of)
    if not devices:
        raise BackendUnavailableError(f"backend {backend.name!r} lists no device on this host")
    # Threads that run at the same time have no variables of their own.
    if told := launch():
        return devices[told.rank % len(devices)]
    if (local := os.environ.get("LOCAL_RANK")) is not None:
        return devices[int(local) % len(devices)]
    if (current := _made_current(devices[0].type)) is not None:
        return next((device for device in devices if device.index == current), devices[0])
    if is_alone:
        return max(devices, key=lambda device: device.free or 0)
    return devices[rank % len(devices)]


def _made_current(device_type: str) -> int | None:
    """Return the index of the current device, if the program has made another than the first the current one."""
    if device_type == "cpu":
        return None
    try:
        module = torch.get_device_module(device_type)
        # To ask for it would else open the first one, in each process.
        is_open: bool = module.is_initialized()
        return (int(module.current_device()) or None) if is_open else None
    except (AttributeError, RuntimeError):
        return None


def open_verbs(backend: Backend, group: Group) -> Verbs:
    """Open `backend` over `group`, having checked that the hardware allows a group of that size."""
    capabilities = _asked(backend, partial(capabilities_of, device=group.device))
    if group.size == 1:
        # It is opened on no hardware, so every hardware has it: an axis of length 1, say.
        return Verbs(None, group, capabilities)
    if not capabilities.allows_group_of(group.size):
        sizes = sorted(capabilities.group_sizes or ())
        multiple = capabilities.group_size_multiple
        also = f" or a multiple of {multiple}" if multiple else ""
        raise UnsupportedError(
            f"{group}: backend {backend.name!r} has no groups of {group.size}; legal sizes are {sizes}{also}"
        )
    try:
        communicator = backend.open(group)
    except DevicesError:
        raise
    except Exception as error:
        raise PluginError(f"{group}: backend {backend.name!r} could not open the group: {error}") from error
    if not isinstance(communicator, Communicator):
        raise PluginError(
            f"{group}: backend {backend.name!r} opened the group and returned {shown(communicator)}, which is no "
            "devices.Communicator"
        )
    return Verbs(communicator, group, capabilities)


def open_verbs_across(backend: Backend, group: Group, mixed: Mixed) -> Verbs:
    """Open a group of a world of several domains: as ever if one backend has a group of these, else each domain's."""
    vendors = mixed.vendors
    if mixed.is_native(group.ranks):
        return open_verbs(backend, group)
    opened = open_mixed(group, vendors, mixed.fabrics, partial(_open_domain, backend), mixed.gone(group))
    communicator = opened.communicator
    own = _asked(backend, partial(capabilities_of, device=group.device))
    reductions = communicator.reductions or {}
    can = Capabilities(own.dtypes, reductions, links=own.links)
    return Verbs(communicator, group, can, vendors.lacks(group.ranks), opened.survivors)


def _open_domain(backend: Backend, group: Group) -> Verbs:
    """Open one domain of a group, which may have one rank."""
    if group.size == 1:
        try:
            backend.open_alone(group)
        except DevicesError:
            raise
        except Exception as error:
            raise PluginError(f"{group}: backend {backend.name!r} could not open its device: {error}") from error
    return open_verbs(backend, group)


def _asked(backend: Backend, ask: Callable[[Backend], T]) -> T:
    """Return what a backend answers, an error naming it."""
    try:
        return ask(backend)
    except PluginError as error:
        raise PluginError(f"backend {backend.name!r}: {error}") from error.__cause__
