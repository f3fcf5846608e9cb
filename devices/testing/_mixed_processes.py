"""A rank among ranks of several kinds that is a process: of its own kind, as any backend's, in a world of several.

Which ranks are one domain its world finds out as that of real devices does: each rank says which fabric it is on. What
stands in for the fabric's memory is that which processes of a host share.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import final

from devices._backend import Communicator, Device, Group
from devices._choice import Choice
from devices._interop import Assumed, Interop, Port, Predicted, Shared, Side
from devices.fabric.communicator import FabricCommunicator
from devices.fabric.host.fabric import open_fabric
from devices.fabric.interface import Fabric
from devices.testing._mixed import Mixed
from devices.testing._mixed_backend import MixedBackend


def choice_of(mixed: Mixed, rank: int) -> Choice:
    """Return what the world of a rank is opened on."""
    interop = None if mixed.interop is None else OnHost(mixed.interop, mixed.target_of(rank).name, mixed.assumed)
    backend = MixedBackend(mixed, rank, _share, interop, is_process=True)
    return Choice(backend, f"a process of this host, emulated among {mixed}", ())


def _share(group: Group) -> Shared | str:
    fabric = open_fabric(group)
    if isinstance(fabric, str):
        return fabric

    def carry(front: Fabric, scheduled: bool) -> FabricCommunicator:
        return FabricCommunicator(front, group, scheduled=scheduled)

    return Shared(fabric, carry)


@final
class OnHost(Interop):
    """A fabric whose memory is that of this host, in which all ranks are on it.

    Args:
        interop: the fabric.
        target: what this rank is.
        assumed: what is assumed of it.
    """

    # Those of the fabric.
    name = ""
    domain = ""

    def __init__(self, interop: Interop, target: str, assumed: Assumed) -> None:
        self._interop = interop
        self._port = Port(target, "this run", assumed)
        self.name, self.domain = interop.name, interop.domain  # type: ignore[misc]  # of the class, for all others

    def port(self, device: Device) -> Port:
        return self._port

    def memory(self, group: Group) -> Shared | str:
        return _share(group)

    def covers(self, targets: AbstractSet[str]) -> bool:
        return self._interop.covers(targets)

    def domains(self, sides: Sequence[Side], assumed: Assumed) -> Sequence[Sequence[Side]]:
        return self._interop.domains(sides, assumed)

    def limits_of(self, target: str, assumed: Assumed) -> str:
        return self._interop.limits_of(target, assumed)

    def open(self, group: Group, sides: Sequence[Side], shared: Shared, assumed: Assumed) -> Communicator:
        return self._interop.open(group, sides, shared, assumed)

    def bridge(self, assumed: Assumed) -> str:
        return self._interop.bridge(assumed)

    def compared(self, assumed: Assumed) -> dict[str, Assumed]:
        return dict(self._interop.compared(assumed))

    def predicted(self, verb: str, size: int, root: int, sides: Sequence[Side], assumed: Assumed) -> Predicted:
        return self._interop.predicted(verb, size, root, sides, assumed)
