"""What the driver's files say of each chip and of the machine, in the folders /sys and /dev."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from devices_neuron.chips import GENERATIONS, Generation
from devices_neuron.machine import MOST_CHIPS, UltraServer
from devices_neuron.tree import Tree

_CHIPS = "sys/devices/virtual/neuron_device"
_CLASS = "sys/class/neuron_device"
_AMAZON = "0x1d0f"


@dataclass(frozen=True, slots=True)
class ChipFiles:
    """What the files of one chip say; None, or "", for what they do not say.

    Args:
        index: its number.
        cores: how many physical cores, by `core_count`.
        folders: how many folders there are of cores.
        neighbours: by `connected_devices`.
        name: by `device_name`.
        instance: by `instance_type`, a generation of instances.
        arch: by `arch_type` of the chip.
        core_arch: by `arch_type` of its first core.
        serial: by `serial_number`.
    """

    index: int
    cores: int | None
    folders: int
    neighbours: tuple[int, ...] | None
    name: str
    instance: str
    arch: str
    core_arch: str
    serial: str


def chips(tree: Tree) -> dict[int, ChipFiles]:
    """Return what the files of every chip say, by its number."""
    return {index: _chip(tree, index) for index in tree.numbered(_CHIPS, "neuron") if index < MOST_CHIPS}


def nodes(tree: Tree) -> dict[int, bool]:
    """Return the numbers of the chips that have a node in /dev, and whether this process may open it."""
    found = {index: path for index, path in tree.numbered("dev", "neuron").items() if index < MOST_CHIPS}
    return {index: not path.is_dir() and _may_open(path) for index, path in found.items()}


def driver(tree: Tree) -> str | None:
    """Return the version of the driver that is loaded, "" if it does not say; None if none is."""
    version = tree.text("sys/module/neuron/version")
    return version if version is not None else "" if (tree.root / "sys/module/neuron").is_dir() else None


def has_moved_files(version: str) -> bool:
    """Return whether a driver of that version has files in other places than those that are read here.

    Of 2.31 AWS's guide to sysfs says so (SDK 2.33); which files those are was not to be had when this was written.
    """
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (2, 31)


def instance_type(tree: Tree) -> str:
    """Return the instance type, as the firmware names it; "" if this is no instance of AWS."""
    for folder in ("sys/class/dmi/id", "sys/devices/virtual/dmi/id"):
        if (text := tree.text(f"{folder}/product_name")) is not None:
            return text if re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", text) else ""
    return ""


def on_the_bus(tree: Tree) -> dict[Generation, int]:
    """Return how many chips of each generation the PCI bus has, driver or not."""
    found: dict[Generation, int] = {}
    by_id = {device: generation for generation in GENERATIONS for device in generation.pci}
    folder = tree.root / "sys/bus/pci/devices"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    for name in names:
        if tree.text(f"sys/bus/pci/devices/{name}/vendor") != _AMAZON:
            continue
        generation = by_id.get(tree.text(f"sys/bus/pci/devices/{name}/device") or "")
        if generation is not None:
            found[generation] = found.get(generation, 0) + 1
    return found


def numa_node(tree: Tree, pci: str) -> int | None:
    """Return the NUMA node of a place on the PCI bus; None when unknown or there is none."""
    found = tree.number(f"sys/bus/pci/devices/{pci}/numa_node", -1, 4096) if pci else None
    return found if found is not None and found >= 0 else None


def used_memory(tree: Tree, chip: int, core: int) -> int | None:
    """Return how many bytes of the chip's memory a physical core has in use; None when unknown."""
    # The counter `total` is what is in use, and `present` the last change of it (the sysfs guide).
    place = f"{_CHIPS}/neuron{chip}/neuron_core{core}/stats/memory_usage/device_mem/total"
    return tree.number(place, 0, 1 << 60)


def ultraserver(tree: Tree, gaps: list[str]) -> UltraServer | None:
    """Return the largest UltraServer that the machine is part of; None if it is of none."""
    for nodes in sorted(tree.numbered(_CLASS, "node_id_"), reverse=True):
        place = f"{_CLASS}/node_id_{nodes}"
        if tree.text(place) == "busy":
            gaps.append("whether it is part of an UltraServer is not known yet: its machines are still electing")
            return None
        node = tree.number(place, -1, nodes - 1)
        server = tree.text(f"{_CLASS}/server_id_{nodes}")
        if node is None or node < 0 or not server:
            continue
        if not re.fullmatch(r"[0-9a-f]{16}", server):
            tree.faults.append(f"/{_CLASS}/server_id_{nodes} says {server[:40]!r}, which is no id of 16 digits")
        elif server.strip("0"):
            return UltraServer(server, node, nodes)
        else:
            tree.faults.append(f"/{place} says node {node}, and server_id_{nodes} that there is no UltraServer")
    return None


def _may_open(path: Path) -> bool:
    # To open one would take it from others.
    return os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _chip(tree: Tree, index: int) -> ChipFiles:
    here = f"{_CHIPS}/neuron{index}"
    cores = tree.numbered(here, "neuron_core")
    return ChipFiles(
        index=index,
        cores=tree.number(f"{here}/core_count", 1, MOST_CHIPS),
        folders=len(cores),
        neighbours=_neighbours(tree, f"{here}/connected_devices"),
        name=tree.text(f"{here}/info/architecture/device_name") or "",
        instance=tree.text(f"{here}/info/architecture/instance_type") or "",
        arch=tree.text(f"{here}/info/architecture/arch_type") or "",
        core_arch=tree.text(f"{here}/neuron_core{min(cores)}/info/architecture/arch_type") or "" if cores else "",
        serial=tree.text(f"{here}/info/serial_number") or "",
    )


def _neighbours(tree: Tree, path: str) -> tuple[int, ...] | None:
    text = tree.text(path)
    if text is None:
        return None
    # "12, 3, 4, 1"; an empty line where the driver knows of none.
    parts = [part.strip() for part in text.split(",")] if text else []
    if any(not re.fullmatch(r"\d{1,4}", part) or int(part) >= MOST_CHIPS for part in parts):
        tree.faults.append(f"/{path} says {text[:40]!r}, which is no list of chips")
        return None
    if len(set(parts)) < len(parts):
        tree.faults.append(f"/{path} names a chip twice: {text[:40]!r}")
        return None
    return tuple(map(int, parts))


def efa_cards(tree: Tree) -> int:
    """Return how many EFA network cards the machine has."""
    folder = tree.root / "sys/class/infiniband"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return 0
    found = 0
    for name in names:
        vendor = tree.text(f"sys/class/infiniband/{name}/device/vendor")
        device = tree.text(f"sys/class/infiniband/{name}/device/device")
        found += vendor == _AMAZON and device is not None and device.startswith("0xefa")
    return found


def is_amazon_linux_2(tree: Tree) -> bool:
    """Return whether the machine runs Amazon Linux 2, and not a later one."""
    try:
        text = (tree.root / "etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return bool(re.search(r'^ID="?amzn"?$', text, re.M) and re.search(r'^VERSION_ID="?2"?$', text, re.M))
