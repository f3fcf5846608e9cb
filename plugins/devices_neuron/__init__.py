"""The Neuron backend: AWS Trainium2 and Trainium3 by native TorchNeuron; older chips are found and named."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import final

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, hookimpl


@final
class NeuronBackend(Backend):
    """Logical NeuronCores, one for each rank.

    Args:
        root: the folder that stands for "/", so that another machine's files can be read.
    """

    name = "neuron"
    device_type = "neuron"
    priority = 200
    verified = "not run on hardware: written from AWS's documents, and tried on machines laid out as files"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def probe(self) -> Probe:
        if not list(self._root.glob("dev/neuron[0-9]*")):
            return Probe(present=False, reason="no AWS Neuron device")
        return Probe(present=False, reason="there are AWS Neuron devices, which this version does not read yet")

    def devices(self) -> Sequence[Device]:
        return ()

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=frozenset())

    def open(self, group: Group) -> Communicator:
        opened: Communicator = import_module("devices_neuron.group").open_group(group)
        return opened


@hookimpl
def devices_backend() -> Backend:
    return NeuronBackend()
