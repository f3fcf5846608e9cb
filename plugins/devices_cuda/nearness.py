"""What lies between two PCI devices: NVML's words for it, worked out from their paths where nobody says it."""

from __future__ import annotations

from devices_cuda.machine import ANCESTORS, Gpu, Machine, Nic

Placed = Gpu | Nic


def ancestor(one: Placed, other: Placed) -> str | None:
    """Return one of `ANCESTORS` for two devices with paths or NUMA nodes; None where those do not say it.

    One PCIe switch is "single", several are "multiple": then the way up from a device to the last bridge that both
    share leads through another bridge than its own port's.
    """
    if one.path is not None and other.path is not None:
        shared = 0
        for mine, yours in zip(one.path[:-1], other.path[:-1], strict=False):
            if mine != yours:
                break
            shared += 1
        if shared:
            ways = (len(one.path) - 1 - shared, len(other.path) - 1 - shared)
            return "single" if max(ways) <= 1 else "multiple"
        if root_bus(one.path) == root_bus(other.path):
            return "hostbridge"
    if one.numa is None or other.numa is None:
        return None
    if one.numa != other.numa:
        return "system"
    # Without the paths it may be as near as one switch.
    return "node" if one.path is not None and other.path is not None else None


def root_bus(path: tuple[str, ...]) -> str:
    """Return the host bridge that a path begins at, as the bus of the port below it."""
    return path[0].rpartition(":")[0]


def between(machine: Machine, gpu: Gpu, nic: Nic) -> str | None:
    """Return what lies between a GPU and a network device."""
    for said in machine.nearness:
        if said.gpu == gpu.index and said.nic == nic.name:
            return said.ancestor
    return ancestor(gpu, nic)


def nearest_nics(machine: Machine, gpu: Gpu) -> tuple[Nic, ...]:
    """Return the network devices that are nearest to a GPU; none if none is on its NUMA node, or nothing is known."""
    levels = {nic: level for nic in machine.nics if (level := between(machine, gpu, nic)) is not None}
    best = min(map(ANCESTORS.index, levels.values()), default=len(ANCESTORS) - 1)
    if ANCESTORS[best] == "system":
        return ()
    return tuple(nic for nic, level in levels.items() if ANCESTORS.index(level) == best)
