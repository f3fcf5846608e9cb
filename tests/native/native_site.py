"""A plugin whose groups are carried by a process group of torch's own that is written in C++: gloo, for CPU tensors."""

from __future__ import annotations

import sys
from pathlib import Path

from throwaway_plugins import Site

from devices import _registry

PLUGIN = """
from devices import Backend, Capabilities, Device, Probe, hookimpl

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "complex64", "complex128", "int8", "int16", "int32",
    "int64", "uint8", "bool",
)


class Native(Backend):
    name = "native"
    device_type = "cpu"
    priority = None

    def probe(self):
        return Probe(True, "for a test")

    def devices(self):
        return (Device("native", "cpu", 0),)

    def capabilities(self, device):
        import torch

        from devices import ProcessGroupCommunicator

        dtypes = frozenset(getattr(torch, name) for name in DTYPES)
        return Capabilities(dtypes, ProcessGroupCommunicator.reductions_of("gloo"))

    def open(self, group):
        from devices import ProcessGroupCommunicator, torch_backend

        return ProcessGroupCommunicator(torch_backend("gloo", group), "the vendor's", native=True)


@hookimpl
def devices_backend():
    return Native()
"""

# The same, for tensors that are not the CPU's: a group of torch's that moves nothing carries those of "meta".
BESIDE_THE_CPU = """

def nothing(group):
    from torch.testing._internal.distributed.fake_pg import FakeProcessGroup

    return FakeProcessGroup._create_internal(group.rank, group.size)
"""

ENVIRONMENT = {"DEVICES_BACKEND": "native"}
"""What makes "auto" the plugin."""


def install(folder: Path) -> None:
    """Write the plugin into `folder`."""
    Site(folder).add("native", PLUGIN)


def install_beside_the_cpu(folder: Path) -> None:
    """Write one into `folder` whose devices are of type "meta"."""
    plugin = PLUGIN.replace('"cpu"', '"meta"').replace('torch_backend("gloo", group)', "nothing(group)")
    Site(folder).add("native", plugin + BESIDE_THE_CPU)


def find(folder: str) -> None:
    """Let this process find the plugins in `folder`."""
    sys.path.insert(0, folder)
    _registry.reset()
