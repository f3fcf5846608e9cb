"""Opens the process group "devices" when torch asks for one."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch.distributed as dist

from devices import _observing, _registry, _torch
from devices._backend import Group
from devices._c10d import DevicesGroup
from devices._launch import launch
from devices._open import my_device
from devices._store import Store
from devices.errors import UnsupportedError


def create_process_group(options: Any, choice: object = None) -> DevicesGroup:
    """Open a group for torch, which calls this on every member.

    Args:
        options: torch's `_DistributedBackendOptions`: store, timeout, ranks and name.
        choice: the `Choice` that `devices.init` hands on as `pg_options`; without one the world's own is
            taken, or "auto" when the world itself is being made.
    """
    _observing.begin()
    world = dist.group.WORLD if dist.is_initialized() else None
    if isinstance(choice, _registry.Choice):
        chosen = choice
    elif isinstance(world, DevicesGroup):
        chosen = world.choice
    elif told := launch():
        chosen = told.choice
    else:
        chosen = _registry.choose("auto", lambda: Store(options.store))
    ranks = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
    if os.environ.get("DEVICES_NO_PICKLE") == "1":
        _torch.refuse_object_collectives(lambda group: isinstance(group, DevicesGroup), _pickle_refused)
    rank, device = options.group_rank, my_device(chosen.backend)
    # A store outlives its groups: the keys of this one must not be those of another that these ranks had before.
    members = hashlib.sha256(str(ranks).encode()).hexdigest()[:16]
    openings = f"devices/{members}/{rank}"
    prefix = f"devices/{members}/{options.store.add(openings, 1)}"
    try:
        store = Store(dist.PrefixStore(prefix, options.store))
        return DevicesGroup(Group(ranks, rank, device, store, options.timeout, options.group_id), chosen)
    except BaseException:
        # Another try of this rank alone must meet the others' first.
        options.store.add(openings, -1)
        raise


def _pickle_refused() -> UnsupportedError:
    return UnsupportedError(
        "DEVICES_NO_PICKLE=1 refuses torch's object collectives, which pickle; "
        "exchange tensors by devices.all_gather, or JSON through a file"
    )
