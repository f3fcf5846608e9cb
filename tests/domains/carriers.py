"""What carries the ranks of a world of threads, to make groups of several domains of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from devices import Group
from devices.algorithms.verbs import Verbs
from devices.c10d.lanes import lanes_of
from devices.domains.members import Domains


@dataclass(frozen=True)
class Carriers:
    """Seen from a rank: a group of all ranks, what carries those, the verbs of its own domain, its place there."""

    group: Group
    world: Verbs
    host: Any
    own: Verbs
    place: int
    size: int


def carriers(domains: Domains, name: str) -> Carriers:
    rank = dist.get_rank()
    groups = [dist.new_group(list(members)) for members in domains.members]
    members = domains.members[mine := domains.of_rank(rank)]
    lanes, own = lanes_of(dist.group.WORLD), lanes_of(groups[mine])
    assert lanes is not None
    assert own is not None
    world = lanes.opened["cpu"]
    group = replace(lanes.group, store=lanes.group.store.under(name), name=name)
    return Carriers(group, world, world._communicator, own.opened["cpu"], members.index(rank), len(members))
