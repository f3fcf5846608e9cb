"""Descriptions of machines: a record or the text of `nvidia-smi topo -m` in a file, and that text from this host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from devices_cuda.machine import Machine
from devices_cuda.record import RecordError, from_json
from devices_cuda.topo import read_matrix

_SECONDS = 20.0


def read_machine(path: str | Path) -> Machine:
    """Return the machine that a file describes: JSON as `python -m devices_cuda` writes it, or `nvidia-smi topo -m`.

    Raises:
        RecordError: it cannot be read, is damaged, or contradicts itself; the message names the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    try:
        return from_json(text) if text.lstrip().startswith("{") else read_matrix(text)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def matrix_of_this_host(command: str = "nvidia-smi", seconds: float = _SECONDS) -> Machine:
    """Return what `nvidia-smi topo -m` says of this host.

    Raises:
        RecordError: there is no such command, it fails, is late, or prints what is no matrix.
    """
    try:
        done = subprocess.run(
            [command, "topo", "-m"], capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecordError(f"`{command} topo -m` cannot be run: {error}") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        told = (done.stderr.decode(errors="replace") or text).strip()[:200]
        raise RecordError(f"`{command} topo -m` failed with status {done.returncode}: {told}")
    return read_matrix(text)
