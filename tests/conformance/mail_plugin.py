"""The plugin that ranks which are processes find: the good backend, or the mutant that CONFORMANCE_MUTANT names."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from devices import Backend, Capabilities, Communicator, Device, Group, Probe, hookimpl


class ByName(Backend):
    """Imports nothing heavy until it is asked for more than its probe."""

    name = "mail_by_folder"
    device_type = "cpu"
    priority = None

    @functools.cached_property
    def backend(self) -> Backend:
        from good_backend import FolderBackend
        from mutants import MUTANTS

        name = os.environ.get("CONFORMANCE_MUTANT")
        return MUTANTS[name].backend() if name else FolderBackend()

    def probe(self) -> Probe:
        return Probe(present=True, reason="every machine has folders")

    def devices(self) -> Sequence[Device]:
        return self.backend.devices()

    def capabilities(self, device: Device) -> Capabilities:
        return self.backend.capabilities(device)

    def open(self, group: Group) -> Communicator:
        return self.backend.open(group)


class Hasty(ByName):
    """Imports something heavy to answer its probe."""

    def probe(self) -> Probe:
        import torch

        return Probe(present=torch.cpu.is_available(), reason="torch says so")


@hookimpl
def devices_backend() -> ByName:
    return Hasty() if "CONFORMANCE_HASTY" in os.environ else ByName()
