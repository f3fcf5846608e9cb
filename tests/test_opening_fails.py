"""A group that does not open says why, whatever else goes wrong meanwhile."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from devices import Backend, Capabilities, Device, Probe
from devices._c10d_create import create_process_group
from devices._registry import Choice
from devices.errors import PluginError


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
    options = SimpleNamespace(
        store=LosesItself(),
        global_ranks_in_group=[],
        group_size=2,
        group_rank=0,
        timeout=timedelta(seconds=5),
        group_id="refused",
    )
    with pytest.raises(PluginError, match="could not open the group: the link is down") as told:
        create_process_group(options, Choice(Refuses(), "it was asked for", ()))
    assert "connection reset by peer" in "".join(told.value.__notes__)
