"""The Neuron backend: AWS Trainium2 and Trainium3 by native TorchNeuron; older chips are found and named.

Nothing here imports torch_neuronx, or torch, before a group is opened or capabilities are asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, final

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, Variable, hookimpl
from devices.errors import UnsupportedError
from devices_neuron.cores import Core, SettingsError, index_of_first, usable_cores
from devices_neuron.discover import discover
from devices_neuron.machine import Absent, Machine
from devices_neuron.software import FITTING, Software, installed
from devices_neuron.tree import Tree

if TYPE_CHECKING:
    from devices.topology import Topology

_NOT_SUPPORTED = (
    "native TorchNeuron runs on Trainium2 and Trainium3 only; these chips need torch-xla and Neuron SDK 2.31 or older, "
    "the last that has it, and a plugin of their own for that"
)


@final
class NeuronBackend(Backend):
    """Logical NeuronCores, one for each rank.

    Args:
        root: the folder that stands for "/", so that another machine's files can be read.
        environment: the variables that say which cores this process may use; those of the process if None.
        software: what is installed; what is installed here if None.
    """

    name = "neuron"
    device_type = "neuron"
    priority = 200
    verified = (
        "not run on hardware: written from AWS's documents, and tried on machines laid out as files and on a stand-in "
        "for torch_neuronx that keeps the documented limits"
    )

    def __init__(
        self,
        root: Path = Path("/"),
        environment: Mapping[str, str] | None = None,
        software: Software | None = None,
    ) -> None:
        self._root = root
        self._variables: Mapping[str, str] = os.environ if environment is None else environment
        self._given = software

    @cached_property
    def _environment(self) -> Mapping[str, str]:
        # As it was when it was first looked at: the vendor's process group gives the rank its one core by a variable.
        return dict(self._variables)

    @cached_property
    def machine(self) -> Machine | Absent:
        """What was found on the machine, looked for once."""
        return discover(self._root)

    def probe(self) -> Probe:
        machine = self.machine
        if isinstance(machine, Absent):
            return Probe(present=False, reason=machine.reason)
        if lack := self._lack(machine):
            return Probe(present=False, reason=lack)
        cores = self._cores()
        many = f"{len(cores)} logical core{'s' if len(cores) > 1 else ''} at LNC {cores[0].lnc}"
        told = [str(machine), many, *([f"driver {machine.driver}"] if machine.driver else [])]
        wrong = f"; {len(machine.faults)} faults, of which `devices doctor` tells" if machine.faults else ""
        # What could not be found out is part of what is here.
        return Probe(present=True, reason="; ".join([", ".join(told) + wrong, *machine.gaps[:2]]))

    def devices(self) -> Sequence[Device]:
        machine = self.machine
        if isinstance(machine, Absent) or self._lack(machine):
            return ()
        first = index_of_first(self._cores(), self._environment)
        return tuple(
            Device("neuron", "neuron", index, f"{machine.generation} at LNC {core.lnc}", core.memory, self._free(core))
            for index, core in enumerate(self._cores(), first)
        )

    def capabilities(self, device: Device) -> Capabilities:
        from devices_neuron.figures import capabilities_of

        machine = self.machine
        if isinstance(machine, Absent):
            return Capabilities(dtypes=frozenset())
        return capabilities_of(machine, self._cores(), device)

    def topology(self) -> Topology | None:
        from devices_neuron.graph import topology_of

        machine = self.machine
        if isinstance(machine, Absent) or self._lack(machine):
            return None
        cores = self._cores()
        return topology_of(machine, cores, index_of_first(cores, self._environment))

    def launch_environment(self, ranks: int | None = None, local_rank: int | None = None) -> Sequence[Variable]:
        from devices_neuron.launch import own_variables, shared_variables

        machine = self.machine
        if isinstance(machine, Absent):
            raise UnsupportedError(machine.reason)
        try:
            if local_rank is not None:
                return own_variables(machine, self._environment, ranks, local_rank)
            return shared_variables(machine, Tree(self._root), self._environment, ranks)
        except SettingsError as error:
            raise UnsupportedError(f"{machine}: {error}") from error

    def contradictions(self) -> Sequence[str]:
        from devices_neuron.contradictions import contradictions_of

        machine = self.machine
        if isinstance(machine, Absent):
            return machine.faults
        return contradictions_of(machine, Tree(self._root), self._environment)

    def bind(self, device: Device) -> None:
        import_module("devices_neuron.group").bind(device)

    def bound(self, device: Device) -> tuple[str, int] | None:
        if "torch_neuronx" not in sys.modules:
            return None
        started: tuple[str, int] | None = import_module("devices_neuron.group").bound()
        return started

    def open_alone(self, group: Group) -> None:
        import_module("devices_neuron.group").open_alone(group)

    def open(self, group: Group) -> Communicator:
        opened: Communicator = import_module("devices_neuron.group").open_group(group)
        return opened

    def _cores(self) -> tuple[Core, ...]:
        """Return the logical cores that this process may use; there is a machine, and its settings are right."""
        machine = self.machine
        assert isinstance(machine, Machine)
        return usable_cores(machine, self._environment)

    def _lack(self, machine: Machine) -> str | None:
        """Return why the machine cannot be used by this process; None if it can."""
        if not machine.generation.is_supported:
            return f"{machine}: {_NOT_SUPPORTED}"
        closed = [chip for chip in machine.chips if not chip.is_open]
        if len(closed) == len(machine.chips):
            first = self._root / f"dev/neuron{closed[0].index}"
            if first.exists():
                return f"{machine}: this user may not open /dev/neuron{closed[0].index}; let it read and write there"
            return f"{machine}: /dev has no node of them; a container is given them by --device=/dev/neuron0, ..."
        try:
            cores = usable_cores(machine, self._environment)
        except SettingsError as error:
            return f"{machine}: {error}"
        if not cores:
            return f"{machine}: it has no logical core that this process may use"
        lack = (installed() if self._given is None else self._given).lack
        return f"{machine}: {lack}" if lack else None

    def _free(self, core: Core) -> int | None:
        from devices_neuron.sysfs import used_memory

        used = [used_memory(Tree(self._root), core.chip.index, each) for each in core.physical]
        if core.memory is None or any(each is None for each in used):
            return None
        free = core.memory - sum(each or 0 for each in used)
        return free if free >= 0 else None


@hookimpl
def devices_backend() -> Backend:
    if root := os.environ.get("DEVICES_NEURON_ROOT"):
        # Another machine's files say nothing of what is installed here.
        return NeuronBackend(Path(root), software=FITTING)
    return NeuronBackend()
