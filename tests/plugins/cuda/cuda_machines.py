"""The machines that lie in the folder beside this file."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from devices_cuda.files import read_machine
from devices_cuda.machine import Machine

FOLDER = Path(__file__).with_name("machines")
RECORDS = sorted(path.name for path in FOLDER.glob("*.json"))
MATRICES = sorted(path.name for path in FOLDER.glob("*.txt"))


@functools.cache
def machine(name: str) -> Machine:
    return read_machine(FOLDER / name)


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def write_sysfs(root: Path, found: Machine) -> None:
    """Lay the PCI devices of a machine out below a folder, as the kernel does."""
    for folder in ("bus/pci/devices", "class/infiniband", "class/net"):
        (root / folder).mkdir(parents=True)
    for device in (*found.gpus, *found.nics):
        if device.path is None or device.pci is None:
            continue
        top = device.path[0].rpartition(":")[0]
        place = root / "devices" / f"pci{top}" / Path(*device.path)
        place.mkdir(parents=True, exist_ok=True)
        (place / "numa_node").write_text(f"{-1 if device.numa is None else device.numa}\n")
        entry = root / "bus/pci/devices" / device.pci
        entry.symlink_to(os.path.relpath(place, entry.parent))
    for nic in found.nics:
        if nic.pci is None:
            continue
        # A port of RDMA is a port of a network too.
        for kind, name in (("infiniband", nic.name), ("net", f"ib{nic.name}")):
            if kind == "infiniband" and not nic.rdma:
                continue
            port = root / "class" / kind / (name if nic.rdma else nic.name)
            port.mkdir()
            (port / "device").symlink_to(root / "bus/pci/devices" / nic.pci)
    (root / "class/net/lo").mkdir()
