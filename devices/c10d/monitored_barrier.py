"""A barrier over the group's store, which names the ranks that did not come. It needs no working transport."""

from __future__ import annotations

import time
from datetime import timedelta

from devices._backend import Group
from devices.errors import CollectiveError, CollectiveTimeoutError


def monitored_barrier(group: Group, number: int, timeout: timedelta | None, wait_all_ranks: bool) -> None:
    """Return once every rank has called it; rank 0 finds out who has not.

    Args:
        group: the members.
        number: which of the group's monitored barriers it is, counted on every rank.
        timeout: how long to wait; None for the group's own.
        wait_all_ranks: whether rank 0 waits the whole time and names all who are missing, not only the first.

    Raises:
        CollectiveTimeoutError: on rank 0, some ranks did not come, or, elsewhere, rank 0 did not.
        CollectiveError: elsewhere, rank 0 came and missed others.
    """
    store, prefix = group.store, f"monitored_barrier/{number}"
    limit = group.timeout if timeout is None else timeout
    deadline = time.monotonic() + limit.total_seconds()
    if group.rank != 0:
        store.set(f"{prefix}/{group.rank}", "here")
        if not store.comes(f"{prefix}/outcome", deadline - time.monotonic()):
            raise CollectiveTimeoutError(f"{group}: monitored_barrier: rank 0 did not come within {limit}")
        if missing := store.get(f"{prefix}/outcome"):
            raise CollectiveError(f"{group}: monitored_barrier: this rank came, but rank 0 missed {missing}")
        return
    absent: list[int] = []
    for rank in range(1, group.size):
        if not store.comes(f"{prefix}/{rank}", deadline - time.monotonic()):
            absent.append(rank)
            if not wait_all_ranks:
                break
    names = f"rank{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent))}" if absent else ""
    store.set(f"{prefix}/outcome", names)
    if absent:
        # The beginning is as gloo has it, for what looks for that.
        raise CollectiveTimeoutError(
            f"Rank 0 timed out in monitoredBarrier: {names} of {group.size} did not come within {limit} "
            f"(group {group.name!r})"
        )
