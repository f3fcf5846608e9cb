"""A stand-in for AWS's torch-neuronx, for tests: its documented interface over the CPU, with its documented limits.

It is written from documents and observations of others, never from a run on the hardware, and where those leave
something open it does the stricter. `limits.py` lists what it enforces, each with its source. Importing it gives torch
the device type "neuron", the module `torch.neuron` and the process group "neuron", as importing the real one does.

A "machine" is a folder, named by NEURON_STANDIN_MACHINE, in which processes take its logical cores;
NEURON_STANDIN_CORES says how many those are, 64 unless said, which is a trn2.48xlarge.
"""

from __future__ import annotations

import torch

from . import group, machine, neuron, tensors
from .streams import Event, Stream, current_stream, default_stream, set_stream, stream

__version__ = "2.13.3.0"

__all__ = [
    "Event",
    "Stream",
    "current_device",
    "current_stream",
    "default_stream",
    "device_count",
    "is_neuron_runtime_initialized",
    "set_device",
    "set_stream",
    "stream",
    "synchronize",
]

current_device = machine.current_device
device_count = machine.device_count
is_neuron_runtime_initialized = machine.is_initialized
set_device = neuron.set_device
synchronize = neuron.synchronize


def _autoload() -> None:
    """Be what the entry point in the group torch.backends names: the import has done it all."""


tensors.register(neuron)
group.register()
# On a thread of its own autograd would ask for device 0, whichever the rank's is: torch's guard for devices that are
# written in Python knows no other.
torch.autograd.set_multithreading_enabled(False)
