"""A group of several domains that cannot open, over ranks that are threads: nothing of it is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

import devices.testing
from devices import Group, open_domains
from devices._backend import Communicator
from devices.c10d.lanes import lanes_of
from devices.errors import WorldError


class _Opened(Communicator):
    """What carries nothing, and notes how it ends."""

    def __init__(self, ended: list[str], name: str) -> None:
        self._ended, self._name = ended, name

    def abort(self) -> None:
        self._ended.append(f"{self._name} aborted")

    def close(self) -> None:
        self._ended.append(f"{self._name} closed")


def half_opened(_: devices.World, inside_opens: bool) -> list[str]:
    lanes = lanes_of(dist.group.WORLD)
    assert lanes is not None
    group = replace(lanes.group, store=lanes.group.store.under("half"), name="half")
    ended: list[str] = []

    def inside(group: Group) -> Communicator:
        if not inside_opens:
            raise WorldError("this domain does not open")
        return _Opened(ended, "inside")

    with pytest.raises(WorldError):
        open_domains(group, "ab"[group.rank % 2], "half", inside, lambda group: _Opened(ended, "between"))
    return ended


def test_what_was_opened_before_a_domain_could_not_open_is_closed() -> None:
    expected = ["between aborted", "between closed"]
    assert devices.testing.run(half_opened, False, ranks=4) == [expected] * 4


def test_what_was_opened_before_there_were_no_schedules_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise WorldError("rank 0 did not tell the schedules")

    monkeypatch.setattr("devices.domains.opening.planned", fails)
    expected = ["inside aborted", "inside closed", "between aborted", "between closed"]
    assert devices.testing.run(half_opened, True, ranks=4) == [expected] * 4
