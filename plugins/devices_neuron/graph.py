"""A machine's chips and logical cores as a `devices.topology`."""

from __future__ import annotations

from collections.abc import Sequence

from devices.topology import Link, Node, Topology
from devices_neuron.cores import Core
from devices_neuron.figures import Rate, between_chips, has_switch, within_a_chip
from devices_neuron.machine import Chip, Machine

SWITCH = "neuronswitch"
"""The node that joins all chips of a machine, where they are not joined to each other."""


def chip_name(chip: int) -> str:
    """Return the name of a chip's node."""
    return f"neuron chip {chip}"


def topology_of(machine: Machine, cores: Sequence[Core], first: int = 0) -> Topology:
    """Return the graph of those logical cores, the devices `first`, ... of a process, and of all the machine's chips.

    A chip is a switch that its cores hang on. Where it is not known which chips are joined, none is.
    """
    nodes = [_core(index, core) for index, core in enumerate(cores, first)]
    nodes += [_chip(machine, chip) for chip in machine.chips]
    links: list[Link] = []
    for index, core in enumerate(cores, first):
        rate = within_a_chip(machine, core.chip.cores // core.lnc)
        links += _both(f"neuron:{index}", chip_name(core.chip.index), "chip", rate)
    rate = between_chips(machine)
    if has_switch(machine):
        nodes.append(Node(SWITCH, "switch"))
        for chip in machine.chips:
            links += _both(chip_name(chip.index), SWITCH, "neuronlink", rate)
    known = {chip.index for chip in machine.chips}
    for chip in machine.chips:
        for peer in chip.neighbours or ():
            if peer in known:
                links.append(_link(chip_name(chip.index), chip_name(peer), "neuronlink", rate))
    return Topology(nodes, links, str(machine))


def _core(index: int, core: Core) -> Node:
    attributes: dict[str, str | int] = {"core": core.id, "chip": core.chip.index, "lnc": core.lnc}
    if core.memory is not None:
        attributes["memory"] = core.memory
    if core.chip.numa is not None:
        attributes["numa"] = core.chip.numa
    return Node(f"neuron:{index}", "device", attributes)


def _chip(machine: Machine, chip: Chip) -> Node:
    attributes: dict[str, str | int] = {"generation": machine.generation.name, "cores": chip.cores}
    known: dict[str, str | int | None] = {
        "memory": chip.memory,
        "numa": chip.numa,
        "pci": chip.pci or None,
        "serial": chip.serial or None,
        "ultraserver": machine.ultraserver.server if machine.ultraserver else None,
        "node": machine.ultraserver.node if machine.ultraserver else None,
    }
    attributes |= {name: value for name, value in known.items() if value is not None}
    return Node(chip_name(chip.index), "switch", attributes)


def _both(one: str, other: str, kind: str, rate: Rate) -> tuple[Link, Link]:
    return _link(one, other, kind, rate), _link(other, one, kind, rate)


def _link(source: str, target: str, kind: str, rate: Rate) -> Link:
    return Link(source, target, kind, rate.bandwidth, rate.latency, rate.origin, rate.status)
