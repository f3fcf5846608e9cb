"""What carries a group, in words: its domains, what is inside of them and between them, and how each verb goes."""

from __future__ import annotations

import torch.distributed as dist

from devices.c10d.lanes import lanes_of
from devices.calls.groups import GroupLike, own_verbs, process_group


def explain_group(group: GroupLike) -> str:
    """Return which ranks a group has, what carries them, and how each verb on tensors of its devices goes."""
    found = process_group(group)
    lanes = lanes_of(found)
    note = lanes.note if lanes is not None else "torch's own: " + dist.get_backend_config(found)
    members = dist.get_process_group_ranks(found)
    ranks = ", ".join(map(str, members))
    lines = [f"group {found.group_name!r} of ranks {ranks}: {note or 'nothing carries a group of one'}"]
    if lanes is not None and lanes.mixed is not None:
        lines += [f"  {said}" for said in lanes.mixed.vendors.lacks_by_ranks(members)]
    lines += [f"  {verb}: {way}" for verb, way in own_verbs(group).ways.items()]
    return "\n".join(lines)
