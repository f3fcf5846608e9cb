"""A group that does not open says why, whatever else goes wrong meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

import devices
from devices import Backend, Capabilities, Device, Group, Probe, Store, _registry
from devices._choice import Choice
from devices.c10d.create import create_process_group
from devices.errors import CollectiveTimeoutError, PluginError


class Refuses(Backend):
    """A backend that opens no group."""

    name = "refuses"
    device_type = "cpu"

    def probe(self) -> Probe:
        return Probe(True, "always")

    def devices(self) -> tuple[Device, ...]:
        return (Device("refuses", "cpu", 0),)

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(frozenset({torch.float32}))

    def open(self, group: Any) -> Any:
        raise OSError("the link is down")


class LosesItself(dist.HashStore):
    """A store that is gone by the time that a group has not opened."""

    def add(self, key: str, amount: int) -> int:
        if amount < 0:
            raise RuntimeError("connection reset by peer")
        return super().add(key, amount)


def test_a_store_that_is_gone_too_does_not_hide_why_a_group_did_not_open() -> None:
    store = LosesItself()
    members = hashlib.sha256(b"(0, 1)").hexdigest()[:16]
    # The peer has told what it is, and the same.
    told_before = {"backend": "refuses", "plugin": "", "interface": 1, "devices": 1, "limited": False}
    store.set(f"devices/{members}/1/rank/backend/1", json.dumps(told_before))
    options = SimpleNamespace(
        store=store,
        global_ranks_in_group=[],
        group_size=2,
        group_rank=0,
        timeout=timedelta(seconds=5),
        group_id="refused",
    )
    with pytest.raises(PluginError, match="could not open the group: the link is down") as told:
        create_process_group(options, Choice(Refuses(), "it was asked for", ()))
    assert "connection reset by peer" in "".join(told.value.__notes__)


def test_a_member_that_tells_nothing_in_time_is_named() -> None:
    group = Group((4, 7), 0, Device("toy", "cpu", 0), Store(dist.HashStore()), timedelta(seconds=0.1), "pair")
    with pytest.raises(CollectiveTimeoutError, match=r"rank 0 of 2 in group 'pair': .* rank 7 did not come"):
        group.share("place", "here")
    group.store.set("place/1", ["there", 2])
    assert group.share("place", "here") == ["here", ["there", 2]]


DIES = """
import os


def open_group(self, group):
    if os.environ["RANK"] == "1":
        os._exit(7)
    return group.share("place", group.rank)


Throwaway.open = open_group
"""


def opens(folder: str) -> str:
    sys.path.insert(0, folder)
    _registry.reset()
    try:
        devices.init("toy", timeout=300)
    except devices.errors.DevicesError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux, where processes can be watched")
def test_a_rank_that_dies_while_a_plugin_opens_the_world_is_an_error_at_once(tmp_path: Path) -> None:
    Site(tmp_path).add("toy", PREAMBLE + DIES + GOOD_HOOK)
    (kind, said), (died, _) = ranks.outcomes(2, opens, str(tmp_path))
    assert (kind, died) == ("returned", "died")
    assert said.startswith("CollectiveError: rank 0 of 2 in group '0': rank 1 died, and this rank waits for what")
