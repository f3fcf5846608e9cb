"""What carries a group, in words: its domains, what is inside of them and between them, and how each verb goes."""

from __future__ import annotations

import torch.distributed as dist

from devices.algorithms.planned import Planned
from devices.c10d.lanes import Lanes, lanes_of
from devices.calls.groups import GroupLike, own_verbs, process_group
from devices.domains.predicted import SIZE, of_topology, on_this_host
from devices.domains.vendors import KNOWN
from devices.fabric.host.communicator import SharedMemoryCommunicator
from devices.roster.answers import capabilities_of, topology_of
from devices.topology.estimate import duration

_NOT_OURS = "not predicted: the group is torch's own; devices.topology.predict predicts for a target of the catalogue"


def explain_group(group: GroupLike) -> str:
    """Return which ranks a group has, what carries them, and how each verb on tensors of its devices goes."""
    found = process_group(group)
    lanes = lanes_of(found)
    note = lanes.note if lanes is not None else "torch's own: " + dist.get_backend_config(found)
    members = dist.get_process_group_ranks(found)
    ranks = ", ".join(map(str, members))
    lines = [f"group {found.group_name!r} of ranks {ranks}: {note or 'nothing carries a group of one'}"]
    lines += lacking(lanes) if lanes is not None else []
    verbs = own_verbs(group)
    lines += [f"  {verb}: {way}" for verb, way in verbs.ways.items()]
    if len(members) > 1:
        told = verbs.predicted or (_predicted(lanes, len(members)) if lanes is not None else _NOT_OURS)
        lines.append(f"  {'; '.join([told, *map(_given, verbs.plans.given)])}")
    return "\n".join(lines)


def lacking(lanes: Lanes) -> list[str]:
    """Return, in words, which dtypes a group's ranks have not; where they are not alike, which some have not."""
    if lanes.mixed is not None and not lanes.mixed.is_native(lanes.group.ranks):
        return [f"  {said}" for said in lanes.mixed.vendors.lacks_by_ranks(lanes.group.ranks)]
    has = capabilities_of(lanes.choice.backend, lanes.group.device).dtypes
    # A device that says nothing of dtypes has whatever there is.
    without = sorted(KNOWN - {str(dtype).removeprefix("torch.") for dtype in has}) if has else []
    return [f"  not on {lanes.choice.backend.name}: {', '.join(without)}"] if without else []


def _given(planned: Planned) -> str:
    """Return how long a verb is predicted to take by the schedule that the program gave for it, in words."""
    verb, root = planned.schedule.verb, planned.schedule.root
    who = verb if root is None else f"{verb} of root {root}"
    if planned.least > SIZE:
        return f"{who} goes by the schedule that the program gave from {planned.least} bytes on"
    by = f"{who} goes by the schedule that the program gave"
    if planned.seconds_per_byte is None:
        return f"{by}, of which nothing is predicted: it was given without the plan that says it"
    return f"{by}, and takes {duration(planned.seconds_per_byte * SIZE)} at best on the topology that it was made for"


def _predicted(lanes: Lanes, ranks: int) -> str:
    """Return how long verbs take in a group of which its communicator says nothing of that."""
    backend = lanes.choice.backend
    if lanes.opened[lanes.group.device.type].are_by(SharedMemoryCommunicator):
        return on_this_host(ranks)
    return of_topology(topology_of(backend), backend.name, ranks)
