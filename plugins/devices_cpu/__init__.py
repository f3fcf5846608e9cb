"""The CPU backend: it is present on every machine, so every program and every test runs anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from types import MappingProxyType
from typing import final

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, hookimpl


@final
class CPUBackend(Backend):
    """Processes on the CPUs of one host or of several, gloo carrying what passes between them."""

    name = "cpu"
    device_type = "cpu"
    priority = 0
    verified = "runs on every machine; tested on x86-64 Linux"

    def probe(self) -> Probe:
        return Probe(present=True, reason=f"{os.cpu_count()} logical CPUs, {platform.machine()}")

    def devices(self) -> Sequence[Device]:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_AVPHYS_PAGES")
        return (Device("cpu", "cpu", 0, platform.processor() or platform.machine(), page * total, page * free),)

    def capabilities(self, device: Device) -> Capabilities:
        import torch

        from devices import ProcessGroupCommunicator

        return Capabilities(
            dtypes=frozenset(dtype for dtype in vars(torch).values() if _is_plain(dtype)),
            reductions=MappingProxyType(dict(ProcessGroupCommunicator.reductions("gloo"))),
        )

    def open(self, group: Group) -> Communicator:
        from torch.distributed import ProcessGroupGloo

        from devices import ProcessGroupCommunicator

        return ProcessGroupCommunicator(ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout))


@hookimpl
def devices_backend() -> Backend:
    return CPUBackend()
