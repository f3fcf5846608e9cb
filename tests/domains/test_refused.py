"""A call over domains that what carries one of them refuses, over ranks that are threads."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from domains.carriers import carriers

import devices.testing
from devices import errors
from devices._backend import Communicator, Pending
from devices.algorithms.verbs import Verbs
from devices.domains import consent
from devices.domains.communicator import DomainsCommunicator
from devices.domains.ended import Ended
from devices.domains.inside import Inside
from devices.domains.members import Domains
from devices.domains.shares import Shares
from devices.fabric.communicator import REDUCTIONS

DOMAINS = Domains(((0, 3), (1, 2)), ("here", "there"))


class _Vendor(Communicator):
    """A vendor's, which reduces no int32 where it `refuses` that."""

    def __init__(self, carried: Any, refuses: bool) -> None:
        self._carried = carried
        self._refuses = refuses

    def reduce_scatter(self, output: torch.Tensor, input: torch.Tensor, op: str) -> Pending:
        if self._refuses and input.dtype is torch.int32:
            raise errors.UnsupportedError("these chips reduce no int32")
        return self._carried.reduce_scatter(output, input, op)

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> Pending:
        return self._carried.all_gather(output, input)


def opened(limited: tuple[int, ...]) -> Verbs:
    """Open a group over both domains, in which some ranks' devices have limits."""
    by = carriers(DOMAINS, "refused")
    vendor = _Vendor(by.own._communicator, dist.get_rank() in limited)
    inside = Inside(vendor, by.place, by.size, by.host, compares_all=True)
    gone = Ended(by.group, frozenset, lambda rank: False)
    communicator = DomainsCommunicator(by.group, DOMAINS, Shares(DOMAINS), inside, by.host, REDUCTIONS, "a test", gone)
    return Verbs(communicator, by.group, by.world.capabilities)


def through(_: devices.World) -> bool:
    verbs = opened(())
    gone = weakref.ref(verbs._communicator)
    verbs.all_reduce(torch.ones(3))
    verbs.close()
    del verbs
    deadline = time.monotonic() + 60
    # The thread that watches over the calls may have it in hand.
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    return gone() is None


def test_a_group_that_is_closed_goes_without_the_cycle_collector() -> None:
    gc.disable()
    try:
        assert devices.testing.run(through, ranks=4) == [True] * 4
    finally:
        gc.enable()


def refused(_: devices.World, limited: tuple[int, ...]) -> list[str]:
    verbs, said = opened(limited), []
    me = dist.get_rank()
    # In neither of these a domain's own verb is called: nobody is asked, and nothing is taken for agreed.
    verbs.all_reduce(torch.empty(0, dtype=torch.int32))
    verbs.reduce_scatter(
        w := torch.zeros(me + 1, dtype=torch.int32), torch.ones(10, dtype=torch.int32), counts=[1, 2, 3, 4]
    )
    assert w.tolist() == [4] * (me + 1)
    for _ in range(2):
        x = torch.full((5,), me + 1, dtype=torch.int32)
        with pytest.raises(errors.UnsupportedError) as caught:
            verbs.all_reduce(x)
        said.append(str(caught.value))
        with pytest.raises(errors.UnsupportedError, match="these chips reduce no int32"):
            verbs.reduce_scatter(torch.zeros(1, dtype=torch.int32), x[:4])
        assert x.tolist() == [me + 1] * 5
        verbs.all_reduce(y := torch.full((5,), me + 1.0))
        assert y.tolist() == [10.0] * 5
        verbs.all_gather(z := torch.empty(4, dtype=torch.int32), x[:1])
        assert z.tolist() == [1, 2, 3, 4]
    return said


def test_what_one_domain_refuses_is_refused_on_every_rank_and_the_group_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However slow the machine is.
    monkeypatch.setattr(consent, "PATIENCE", 300.0)
    for rank, said in enumerate(devices.testing.run(refused, (1, 2), ranks=4)):
        for text in said:
            assert "these chips reduce no int32" in text
            # Who was refused has the vendor's own words, the others also by whom.
            assert ("as rank 1 of there was told" in text) is (rank in (0, 3)), text
