"""Opening a backend over a group: which device is mine, may a group have that size, and then the verbs over it."""

from __future__ import annotations

import os

from devices._backend import Backend, Device, Group
from devices._launch import launch
from devices.algorithms.verbs import Verbs
from devices.errors import BackendUnavailableError, DevicesError, PluginError, UnsupportedError


def my_device(backend: Backend) -> Device:
    """Return the device of `backend` that this rank is to use, by its LOCAL_RANK."""
    devices = backend.devices()
    if not devices:
        raise BackendUnavailableError(f"backend {backend.name!r} lists no device on this host")
    # Threads that run at the same time have no variables of their own.
    rank = told.rank if (told := launch()) else int(os.environ.get("LOCAL_RANK", "0"))
    return devices[rank % len(devices)]


def open_verbs(backend: Backend, group: Group) -> Verbs:
    """Open `backend` over `group`, having checked that the hardware allows a group of that size."""
    capabilities = backend.capabilities(group.device)
    if not capabilities.allows_group_of(group.size):
        sizes = sorted(capabilities.group_sizes or ())
        multiple = capabilities.group_size_multiple
        also = f" or a multiple of {multiple}" if multiple else ""
        raise UnsupportedError(
            f"{group}: backend {backend.name!r} has no groups of {group.size}; legal sizes are {sizes}{also}"
        )
    if group.size == 1:
        return Verbs(None, group, capabilities)
    try:
        communicator = backend.open(group)
    except DevicesError:
        raise
    except Exception as error:
        raise PluginError(f"{group}: backend {backend.name!r} could not open the group: {error}") from error
    return Verbs(communicator, group, capabilities)
