"""A rank among ranks of several kinds that is a process: its world is opened over the memory that processes share."""

from __future__ import annotations

from devices._backend import Group
from devices._interop import Shared
from devices._registry import Choice
from devices.errors import UnsupportedError
from devices.fabric.communicator import FabricCommunicator
from devices.fabric.host.fabric import open_fabric
from devices.fabric.interface import Fabric
from devices.testing._mixed import Mixed
from devices.testing._mixed_backend import MixedBackend


def choice_of(mixed: Mixed, rank: int) -> Choice:
    """Return what the world of a rank is opened on."""
    backend = MixedBackend(mixed, rank, _share)
    return Choice(backend, f"a process of this host, emulated among {mixed}", (), spans=True)


def _share(group: Group) -> Shared:
    fabric = open_fabric(group)
    if isinstance(fabric, str):
        raise UnsupportedError(f"{group}: processes emulate ranks of several kinds in memory that they share: {fabric}")

    def carry(front: Fabric, scheduled: bool) -> FabricCommunicator:
        return FabricCommunicator(front, group, scheduled=scheduled)

    return Shared(fabric, carry)
