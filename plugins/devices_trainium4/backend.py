"""The backend of Trainium4: absent everywhere, for there is none; what it can be is emulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from devices import Backend, Capabilities, Communicator, Device, Group, Interop, Probe
from devices.errors import UnsupportedError

ABSENT = (
    "speculative: no Trainium4 is out, and nothing looks for one; to emulate some, "
    'devices.testing.run(fn, ranks={"trainium4": 2, "rubin": 2})'
)


@final
class Trainium4Backend(Backend):
    """What a program gets that asks for Trainium4 by name, today an error that says so."""

    name = "trainium4"
    device_type = "neuron"
    priority = None
    verified = "speculative: no such hardware is out; emulated ranks run on every machine"

    def probe(self) -> Probe:
        return Probe(present=False, reason=ABSENT)

    def devices(self) -> Sequence[Device]:
        return ()

    def capabilities(self, device: Device) -> Capabilities:
        raise UnsupportedError(f"{device}: {ABSENT}")

    def open(self, group: Group) -> Communicator:
        raise UnsupportedError(f"{group}: {ABSENT}")

    def interop(self) -> Interop:
        from devices_trainium4.fusion import NVLinkFusion

        return NVLinkFusion()
