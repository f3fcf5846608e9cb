"""The backend of thread ranks: as a plugin's, but made for one run and one rank, and never found by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices._backend import Backend, Capabilities, Communicator, Device, Group, Probe
from devices.algorithms.arithmetic import MEANINGFUL
from devices.fabric.communicator import REDUCTIONS, FabricCommunicator
from devices.fabric.progress import Progress
from devices.testing._baton import Baton
from devices.testing._thread_fabric import Memories, ThreadFabric

_MOVED = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPES = frozenset({*(dtype for _, dtype in MEANINGFUL), *(getattr(torch, name) for name in _MOVED)})
"""All that a tensor on a CPU may be."""


@final
class ThreadBackend(Backend):
    """Threads of this process, over the memory that they share.

    Args:
        baton: the run's.
        memories: the run's.
        progress: drives the verbs of this rank.
    """

    name = "threads"
    device_type = "cpu"
    priority = None
    verified = "runs on every machine"

    def __init__(self, baton: Baton, memories: Memories, progress: Progress) -> None:
        self._baton = baton
        self._memories = memories
        self._progress = progress

    def probe(self) -> Probe:
        return Probe(present=True, reason="ranks are threads of this process")

    def devices(self) -> Sequence[Device]:
        return (Device("threads", "cpu", 0, "threads of one process"),)

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(DTYPES, REDUCTIONS)

    def open(self, group: Group) -> Communicator:
        fabric = ThreadFabric(self._memories, self._baton, group)
        return FabricCommunicator(fabric, group, self._progress, scheduled=self._baton.is_free)
