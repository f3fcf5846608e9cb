"""A fabric of thread ranks for a test: called on each rank, within `devices.testing.run`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, final

import torch.distributed as dist

from devices._backend import Group
from devices.fabric.communicator import FabricCommunicator
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


def member(name: str) -> Member:
    """Open a group of all ranks, by a name of its own."""
    world: Any = dist.group.WORLD
    group = replace(world.group, name=name)
    communicator = world.choice.backend.open(group)
    return Member(group, communicator, communicator._fabric, communicator._pairs, communicator._progress)
