"""What was found on a machine, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from devices_neuron.chips import Generation

MOST_CHIPS = 64
"""The driver numbers no more (MAX_NEURON_DEVICE_COUNT)."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that holds cores.

    Args:
        pid: its id.
        command: what it was started as.
        cores: the ids of the logical cores that it holds; empty where only the chip is known.
    """

    pid: int
    command: str = ""
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chip:
    """One Neuron device, which is a chip and not a core.

    Args:
        index: its number, as in /dev/neuron3.
        cores: how many physical NeuronCores it has.
        memory: bytes; None when unknown.
        neighbours: the chips that it has a link to; None when that is not known.
        is_open: whether this process may open it.
        pci: its place on the PCI bus, with the domain; "" when unknown.
        numa: its NUMA node; None when unknown or there is none.
        cpus: the CPUs next to it, as Linux lists them; "" when unknown.
        serial: its serial number; "" when unknown.
        core_ids: the ids that `neuron-ls` gives its logical cores; None when unknown.
        owners: the processes that hold it.
    """

    index: int
    cores: int
    memory: int | None = None
    neighbours: tuple[int, ...] | None = None
    is_open: bool = True
    pci: str = ""
    numa: int | None = None
    cpus: str = ""
    serial: str = ""
    core_ids: tuple[int, ...] | None = None
    owners: tuple[Owner, ...] = ()


@dataclass(frozen=True, slots=True)
class UltraServer:
    """The UltraServer that a machine is part of.

    Args:
        server: its id, the same on all its machines.
        node: this machine's number in it.
        nodes: how many machines it has.
    """

    server: str
    node: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with Neuron chips.

    Args:
        generation: of its chips, which are all alike.
        chips: in the order of their numbers.
        instance_type: as AWS calls it; "" when unknown.
        driver: the version of the driver; "" when unknown.
        lnc: the LNC that `neuron-ls` says the machine is set to; None when unknown.
        ultraserver: the UltraServer that it is part of.
        faults: a sentence for each thing that is damaged, and each that two sources say differently.
        gaps: a sentence for each thing that could not be found out.
    """

    generation: Generation
    chips: tuple[Chip, ...]
    instance_type: str = ""
    driver: str = ""
    lnc: int | None = None
    ultraserver: UltraServer | None = None
    faults: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = f"{len(self.chips)} {self.generation} chip{'s' if len(self.chips) > 1 else ''}"
        return f"{count} ({self.instance_type})" if self.instance_type else count


@dataclass(frozen=True, slots=True)
class Absent:
    """No machine that could be used, and why.

    Args:
        reason: in words that a user can act on.
        faults: as in `Machine`.
    """

    reason: str
    faults: tuple[str, ...] = ()
