"""After an error, the ranks of a group that are still there find each other by its memory, which outlives them all."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import final

from torch.distributed import TCPStore

from devices._backend import Group
from devices._store import Store
from devices.errors import CollectiveTimeoutError
from devices.fabric.host.layout import CLOSED, RECOVERY
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import Watch

_COMING, _DECIDED = 1, 2


@final
class Recovery:
    """One rank's part in it.

    The lowest rank that is there decides who else is, and opens a store for them. If it dies before it has, the next
    one does.

    Args:
        segment: the group's memory.
        group: the members.
        watch: sees who has died.
    """

    def __init__(self, segment: Segment, group: Group, watch: Watch) -> None:
        self._group = group
        self._watch = watch
        self._words = segment.words
        controls = [segment.layout.control_word(rank) for rank in range(group.size)]
        self._closed = [control + CLOSED for control in controls]
        self._recovering = [control + RECOVERY for control in controls]
        self._deadline = time.monotonic() + group.timeout.total_seconds()

    def run(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks of the group that are there, and a store that they share.

        Raises:
            CollectiveTimeoutError: a rank neither died nor came within the group's timeout.
        """
        me = self._group.rank
        self._words[self._recovering[me]] = _COMING
        while True:
            there = self._wait_for_all()
            leader = there[0]
            if leader == me:
                store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=self._group.timeout)
                self._watch.decide(there, store.port)
                self._words[self._recovering[me]] = _DECIDED
                return tuple(there), Store(store)
            if (decision := self._hear(leader)) is not None:
                ranks, port = decision
                return ranks, Store(TCPStore("127.0.0.1", port, timeout=self._group.timeout))

    def _wait_for_all(self) -> list[int]:
        """Wait until each rank has come, or will not; return those that have."""
        while True:
            gone = self._gone()
            there = [rank for rank, at in enumerate(self._recovering) if self._words[at] and rank not in gone]
            late = sorted(set(range(self._group.size)) - gone - set(there))
            if not late:
                return there
            self._nap("is alive, but does not recover", late)

    def _hear(self, leader: int) -> tuple[tuple[int, ...], int] | None:
        """Return what the leader has decided; None if it has died before."""
        while self._words[self._recovering[leader]] != _DECIDED:
            if leader in self._gone():
                return None
            self._nap("has not decided who recovers", [leader])
        return self._watch.decided(leader)

    def _gone(self) -> set[int]:
        left = {rank for rank, at in enumerate(self._closed) if self._words[at]}
        return {rank for rank in left | self._watch.dead() if self._words[self._recovering[rank]] != _DECIDED}

    def _nap(self, what: str, late: list[int]) -> None:
        if time.monotonic() > self._deadline:
            who = " and ".join(self._watch.name(rank) for rank in late)
            limit = timedelta(seconds=self._group.timeout.total_seconds())
            raise CollectiveTimeoutError(f"{self._group}: recover failed: after {limit} {who} {what}")
        time.sleep(0.001)
