"""A fabric for a test: called on each rank, of threads within `devices.testing.run`, or in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch.distributed as dist

from devices._backend import Group
from devices.fabric.communicator import FabricCommunicator
from devices.fabric.host.fabric import open_fabric
from devices.fabric.interface import Fabric
from devices.fabric.mark import Mark
from devices.fabric.pairs import Pairs
from devices.fabric.progress import FabricWork, Progress, Steps


@final
@dataclass
class Member:
    """One rank's end of a new group that nothing else uses."""

    group: Group
    communicator: FabricCommunicator
    fabric: Fabric
    pairs: Pairs
    progress: Progress

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def mark(self, verb: str = "test", size: int = -1) -> Mark:
        """Return the next call of the group."""
        return Mark(verb, self.group.name, next(self._numbers), "", size, "", -1, self.fabric.rank, "here:1")

    def start(self, steps: Steps, mark: Mark) -> FabricWork:
        return self.progress.start(FabricWork(self.progress, self.fabric, mark, steps))


open_of_processes: Callable[[Group], Fabric | str] = open_fabric
"""What opens a fabric where ranks are processes; another one may be tried in its place."""

_progress = Progress()
"""That of a rank which is a process."""


def member(name: str, *, scheduled: bool = False) -> Member:
    """Open a group of all ranks, by a name of its own; `scheduled` is of process ranks."""
    world: Any = dist.group.WORLD
    group = replace(world.group, name=name)
    if world.lanes.choice.backend.name == "threads":
        communicator = world.lanes.choice.backend.open(group)
    else:
        fabric = open_of_processes(group)
        assert not isinstance(fabric, str), fabric
        communicator = FabricCommunicator(fabric, group, _progress, scheduled=scheduled)
    return Member(group, communicator, communicator._fabric, communicator._pairs, communicator._progress)
