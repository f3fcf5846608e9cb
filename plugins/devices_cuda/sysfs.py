"""Where PCI devices sit, from the kernel's files: their bridges, their NUMA node, and the network devices."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import final

from devices_cuda.machine import Nic

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@final
class Sysfs:
    """The kernel's files below a folder, and what could not be read of them."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._root = root
        self.unanswered: list[str] = []

    def place(self, pci: str) -> tuple[tuple[str, ...] | None, int | None]:
        """Return the path of a PCI device, from the port of the host bridge down to it, and its NUMA node."""
        return self._place(self._root / "bus/pci/devices" / pci, pci)

    def nics(self) -> tuple[Nic, ...]:
        """Return the network devices that are on PCI: those of RDMA, and of the rest those that are none of them."""
        found: dict[str, Nic] = {}
        for kind in ("infiniband", "net"):
            for device in self._listed(self._root / "class" / kind):
                # What is virtual has no device.
                if not os.path.lexists(device / "device"):
                    continue
                path, numa = self._place(device / "device", device.name)
                if path is None:
                    continue
                # A port of RDMA is a port of a network too, under another name.
                if kind == "net" and any(path[-1] == nic.pci for nic in found.values()):
                    continue
                found[device.name] = Nic(device.name, path[-1], numa, path, kind == "infiniband")
        return tuple(found[name] for name in sorted(found, key=_natural))

    def _place(self, link: Path, who: str) -> tuple[tuple[str, ...] | None, int | None]:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            self.unanswered.append(f"{who}: {_words(error)}")
            return None, None
        path = tuple(part for part in target.parts if _ADDRESS.fullmatch(part))
        # A virtio device is below the PCI device that carries it.
        while target.parts and not _ADDRESS.fullmatch(target.name) and target != target.parent:
            target = target.parent
        return path or None, self._node(target, who) if path else None

    def _node(self, device: Path, who: str) -> int | None:
        try:
            text = (device / "numa_node").read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            self.unanswered.append(f"{who}: {_words(error)}")
            return None
        # -1 says that the firmware does not.
        return int(text) if text.isdecimal() and int(text) < 2**16 else None

    def _listed(self, folder: Path) -> list[Path]:
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self.unanswered.append(_words(error))
            return []


def _natural(name: str) -> tuple[str | int, ...]:
    """Return what sorts mlx5_10 after mlx5_9."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
