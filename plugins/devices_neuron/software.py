"""Whether what answers torch on a chip is installed: native TorchNeuron, of a version that fits torch and Python."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_NATIVE = (2, 13)
"""torch-neuronx 2.13.3.0, of SDK 2.33, is the first that is not built on torch-xla."""

_TORCH = ((2, 13), (2, 15))
_PYTHON = (3, 12)
_INSTALL = "SDK 2.33 has native TorchNeuron, as torch-neuronx 2.13 for torch 2.13 and 2.14 for torch 2.14"


@dataclass(frozen=True, slots=True)
class Software:
    """What is installed.

    Args:
        torch_neuronx: its version; None if it is not installed.
        torch: its version; None if it is not installed.
        python: the first two numbers of its version.
    """

    torch_neuronx: str | None
    torch: str | None
    python: tuple[int, int]

    @property
    def lack(self) -> str | None:
        """What is missing, in words; None if nothing is."""
        if self.torch_neuronx is None:
            return f"torch_neuronx is not installed; {_INSTALL}"
        neuronx = _numbers(self.torch_neuronx)
        if neuronx is None:
            return f"torch_neuronx is of version {self.torch_neuronx!r}, which is none; {_INSTALL}"
        if neuronx < _NATIVE:
            return (
                f"torch_neuronx {self.torch_neuronx} is of the generation that was built on torch-xla and has no "
                f"device 'neuron'; {_INSTALL}"
            )
        if self.python < _PYTHON:
            return f"Python is {_dotted(self.python)}, and native TorchNeuron needs {_dotted(_PYTHON)} or later"
        torch = _numbers(self.torch or "")
        if torch is None or not _TORCH[0] <= torch < _TORCH[1]:
            here = f"torch is {self.torch}" if self.torch else "torch is not installed"
            return f"{here}, and torch_neuronx {self.torch_neuronx} needs torch 2.13 or 2.14"
        if torch != neuronx:
            return f"torch is {self.torch}, and torch_neuronx {self.torch_neuronx} is for torch {_dotted(neuronx)}"
        return None


FITTING = Software("2.13.3.0", "2.13.0", (3, 12))
"""What SDK 2.33 has, with what it needs."""


def installed() -> Software:
    """Return what is installed here; nothing of it is imported."""
    return Software(_version("torch-neuronx"), _version("torch"), sys.version_info[:2])


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", text)
    return (int(found[1]), int(found[2])) if found else None


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
