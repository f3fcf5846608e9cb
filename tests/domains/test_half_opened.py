"""A group of several domains that cannot open, over ranks that are threads: nothing of it is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
from domains.carriers import carriers

import devices.testing
from devices import Capabilities, Group, open_domains
from devices._backend import Communicator, Message, Pending
from devices.algorithms.verbs import Verbs
from devices.c10d.lanes import lanes_of
from devices.domains.card import Card
from devices.domains.members import Domains
from devices.domains.mixed import _open_several
from devices.domains.vendors import Vendors
from devices.errors import WorldError

DOMAINS = Domains(((0, 1), (2, 3)), ("here", "there"))


class _Opened(Communicator):
    """What carries nothing, and notes how it ends."""

    def __init__(self, ended: list[str], name: str) -> None:
        self._ended, self._name = ended, name

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Pending:
        raise AssertionError("nothing is sent")

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


def _fails(*_: Any) -> None:
    raise WorldError("rank 0 did not tell the schedules")


def test_what_was_opened_before_there_were_no_schedules_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.domains.opening.planned", _fails)
    expected = ["inside aborted", "inside closed", "between aborted", "between closed"]
    assert devices.testing.run(half_opened, True, ranks=4) == [expected] * 4


def half_opened_over_vendors(_: devices.World) -> list[str]:
    by, ended = carriers(DOMAINS, "vendors"), list[str]()
    cards = [Card("chip", f"chip:{rank}", rank, "cpu", "a", "", (), None, None) for rank in range(4)]
    own = Verbs(_Opened(ended, "inside"), replace(by.group, ranks=(0, 1), rank=0), Capabilities(frozenset()))
    with pytest.raises(WorldError, match="did not tell the schedules"):
        _open_several(by.group, Vendors(cards), DOMAINS, "", None, lambda group: own, frozenset)
    return ended


def test_what_was_opened_over_vendors_before_there_were_no_schedules_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("devices.domains.mixed.planned", _fails)
    # What is there once there are schedules would have to be closed too.
    made: list[object] = []
    monkeypatch.setattr("devices.domains.mixed.DomainsCommunicator", lambda *given: made.append(given))
    expected = ["inside aborted", "inside closed"]
    assert devices.testing.run(half_opened_over_vendors, ranks=4) == [expected] * 4
    assert made == []
