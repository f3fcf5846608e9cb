"""A vendor's call in which the ranks of a group wait for each other: whoever dies in it is named at once."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import ranks
from memory_of_devices import group_of_its_own

import devices
from devices.errors import CollectiveError
from devices.meeting.roll_call import gone_from_world


def waits_in_the_store() -> str:
    """Return what is said where a rank is killed while its peer waits in the very connection of the store."""
    with devices.init(timeout=300) as world:
        group = group_of_its_own("watched")
        # As it is while a group opens.
        group = replace(group, store=devices.Store(group.store.torch, gone_from_world(group.ranks, group.rank)))

        def call() -> bytes:
            if world.rank == 1:
                group.store.set("begun", True)
                os.kill(os.getpid(), signal.SIGKILL)
            group.store.torch.wait(["begun"])
            return group.store.torch.get("never")

        began = time.monotonic()
        with pytest.raises(CollectiveError) as raised:
            group.watched(call, "a vendor's call")
        assert time.monotonic() - began < 60
        apart = group.store.apart()
        assert apart is not None
        # The world's end needs the connection that the call waits in.
        apart.set("never", True)
        return str(raised.value)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_though_its_peer_waits_in_the_store() -> None:
    survivor, died = ranks.outcomes(2, waits_in_the_store, timeout=120, grace=90)
    assert died[0] == "died"
    assert survivor == ("returned", "rank 0 of 2 in group 'watched': a vendor's call failed: rank 1 died")
