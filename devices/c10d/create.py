"""Opens the process group "devices" when torch asks for one."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch.distributed as dist

from devices import _choice, _observing, _torch
from devices._backend import Group
from devices._open import my_device
from devices._store import Store
from devices.c10d.group import DevicesGroup
from devices.c10d.lanes import Lanes, lanes_of, native_group
from devices.errors import UnsupportedError
from devices.meeting.launch import launch
from devices.meeting.roll_call import gone_from_world, open_together
from devices.meeting.secret import authenticate, secret
from devices.meeting.vendors import Mixed, meet


def create_process_group(options: Any, choice: object = None) -> dist.ProcessGroup:
    """Open a group for torch, which calls this on every member.

    Args:
        options: torch's `_DistributedBackendOptions`: store, timeout, ranks and name.
        choice: the `Choice` that `devices.init` hands on as `pg_options`; without one the world's own is
            taken, or "auto" when the world itself is being made.
    """
    _observing.begin()
    world = dist.group.WORLD if dist.is_initialized() else None
    before = lanes_of(world)
    ranks = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
    rank = options.group_rank
    if world is None and not isinstance(choice, _choice.Choice) and launch() is None:
        _meet(options, rank, ranks)
    if isinstance(choice, _choice.Choice):
        chosen = choice
    elif before is not None:
        chosen = before.choice
    elif told := launch():
        chosen = told.choice
    else:
        chosen = _choice.choose("auto", lambda: Store(options.store))
    if os.environ.get("DEVICES_NO_PICKLE") == "1":
        _torch.refuse_object_collectives(lambda group: lanes_of(group) is not None, _pickle_refused)
    has_device = before is not None and before.choice.backend is chosen.backend
    device = before.group.device if before is not None and has_device else my_device(chosen.backend, ranks[rank])
    gone = gone_from_world(ranks, rank) if world is None and launch() is None else None
    if world is not None and launch() is None:
        name = f"group {options.group_id!r}"
        gone = open_together(options.store, name, ranks, ranks[rank], {"members": list(ranks)}, options.timeout)
    # A store outlives its groups: the keys of this one must not be those of another that these ranks had before.
    members = hashlib.sha256(str(ranks).encode()).hexdigest()[:16]
    openings = f"devices/{members}/{rank}"
    prefix = f"devices/{members}/{options.store.add(openings, 1)}"
    try:
        store = Store(dist.PrefixStore(prefix, options.store), gone)
        group = Group(ranks, rank, device, store, options.timeout, options.group_id)
        mixed = before.mixed if before is not None else _mixed(group, chosen)
        lanes = Lanes(group, chosen, mixed)
        return DevicesGroup(lanes) if lanes.native is None else native_group(lanes)
    except BaseException as error:
        # Another try of this rank alone must meet the others' first.
        try:
            options.store.add(openings, -1)
        except Exception as lost:
            # A store that is gone too says nothing of why the group did not open.
            error.add_note(f"nor could the store be told that the group did not open: {lost}")
        raise
    finally:
        if world is None and gone is not None:
            gone.forget()


def _mixed(group: Group, chosen: _choice.Choice) -> Mixed | None:
    """Return what the ranks of a new world are, if they are of several backends."""
    # Threads of one process have one installation, and are of the backend that they are told.
    is_world = not dist.is_initialized() and launch() is None
    return meet(group, chosen.backend) if is_world and group.size > 1 else None


def _meet(options: Any, rank: int, ranks: tuple[int, ...]) -> None:
    """Let the ranks of a world that torch opens, and not `devices.init`, agree and prove who they are."""
    store = dist.PrefixStore("devices/world", options.store)
    thinks = {"DEVICES_SECRET": "set" if secret() else "not set"}
    open_together(store, "torch's world", ranks, rank, thinks, options.timeout)
    opening = store.add(f"openings/{rank}", 0)
    authenticate(dist.PrefixStore(f"opening/{opening}", store), rank, len(ranks))


def _pickle_refused() -> UnsupportedError:
    return UnsupportedError(
        "DEVICES_NO_PICKLE=1 refuses torch's object collectives, which pickle; "
        "exchange tensors by devices.all_gather, or JSON through a file"
    )
