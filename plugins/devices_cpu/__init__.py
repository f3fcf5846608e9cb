"""The CPU backend: it is present on every machine, so every program and every test runs anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import final

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, Variable, hookimpl

_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "complex32", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64", "bool",
)  # fmt: skip

_MEMINFO = Path("/proc/meminfo")


@final
class CPUBackend(Backend):
    """Processes on the CPUs of one host, which share memory, or of several, gloo carrying what passes between them."""

    name = "cpu"
    device_type = "cpu"
    priority = 0
    verified = "runs on every machine; tested on x86-64 Linux"

    def probe(self) -> Probe:
        return Probe(present=True, reason=f"{os.cpu_count()} logical CPUs, {platform.machine()}")

    def devices(self) -> Sequence[Device]:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return (Device("cpu", "cpu", 0, platform.machine(), total, _free_memory()),)

    def capabilities(self, device: Device) -> Capabilities:
        import torch

        from devices import ProcessGroupCommunicator

        return Capabilities(
            dtypes=frozenset(getattr(torch, name) for name in _DTYPES),
            reductions=MappingProxyType(dict(ProcessGroupCommunicator.reductions_of("gloo"))),
        )

    def reach(self, device: Device) -> str:
        from devices import memory_domain

        return memory_domain()

    def launch_environment(self, ranks: int | None = None, local_rank: int | None = None) -> Sequence[Variable]:
        from devices_cpu.launch import variables

        return variables(ranks, os.environ) if local_rank is None else ()

    def contradictions(self) -> Sequence[str]:
        from devices_cpu.launch import contradictions

        return contradictions(os.environ)

    def open(self, group: Group) -> Communicator:
        from devices import memory_domain, open_domains, open_shared_memory

        opened = open_shared_memory(group)
        if not isinstance(opened, str):
            return opened
        name = os.environ.get("DEVICES_DOMAIN") or platform.node()
        return open_domains(group, memory_domain(), name, open_shared_memory, partial(_gloo, reason=opened))


def _free_memory() -> int:
    """Return the bytes that a program may take: with what the kernel has in caches only for as long as nobody asks.

    Where no file says it, those that nothing at all is in.
    """
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and (words := rest.split())[1:] == ["kB"] and words[0].isdecimal():
            return int(words[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _gloo(group: Group, reason: str) -> Communicator:
    """Return what carries a group whose ranks cannot share memory, for that `reason`."""
    from torch.distributed import ProcessGroupGloo

    from devices import ProcessGroupCommunicator

    gloo = ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout)
    # A rank that has connected and leaves at once would break the peers that are still connecting.
    gloo.barrier().wait()  # type: ignore[attr-defined]  # not in the stubs
    return ProcessGroupCommunicator(gloo, f"gloo: {reason}")


@hookimpl
def devices_backend() -> Backend:
    return CPUBackend()
