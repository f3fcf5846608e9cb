"""Machines laid out as files: those that the folder `machines` describes, one line for each file."""

from __future__ import annotations

import shutil
from pathlib import Path

from devices_neuron.neuron_ls import PATH

MACHINES = Path(__file__).parent / "machines"
NAMES = tuple(sorted(path.stem for path in MACHINES.glob("*.tree")))


def lay_out(name: str, root: Path) -> Path:
    """Lay a machine out under `root`, unless something is there, and return that folder.

    It has a `neuron-ls` if one's output is there.
    """
    if any(root.iterdir()):
        return root
    for line in (MACHINES / f"{name}.tree").read_text().splitlines():
        if line.startswith("#"):
            continue
        path, _, content = line.partition(" =")
        write(root / path, content.strip())
    output = MACHINES / f"{name}.neuron-ls.json"
    if output.exists():
        give_neuron_ls(root, output.read_text())
    elif name == "half-broken-driver":
        give_neuron_ls(root, "", status=1)
    return root


def write(path: Path, content: str) -> None:
    """Write a file as the driver would: a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def give_neuron_ls(root: Path, output: str, status: int = 0) -> None:
    """Install a `neuron-ls` that prints that."""
    command = root / PATH
    command.parent.mkdir(parents=True, exist_ok=True)
    (command.parent / "output").write_text(output)
    said = 'cat "$(dirname "$0")/output"' if not status else "echo 'cannot read the devices' >&2"
    command.write_text(f"#!/bin/sh\n{said}\nexit {status}\n")
    command.chmod(0o755)


def take_neuron_ls(root: Path) -> None:
    """Uninstall it."""
    (root / PATH).unlink(missing_ok=True)


def chip_folder(root: Path, chip: int) -> Path:
    """Return the folder of a chip's files."""
    return root / f"sys/devices/virtual/neuron_device/neuron{chip}"


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
