"""Waiting for peers: spin, yield, sleep; and seeing meanwhile that one has died, left, given up, or is late."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from devices._backend import Group
from devices.errors import CollectiveError, CollectiveTimeoutError, MismatchError
from devices.fabric.host.layout import CLOSED, FAILED, HERE, LEFT, REPORT, STATE
from devices.fabric.host.peers import Peers, Process
from devices.fabric.host.segment import Segment

YIELDING = 0.001
"""For so many seconds a rank gives its core away and looks again; then it sleeps between two looks."""

LOOKING = 0.01
"""So many seconds lie between two looks at whether the peers are still there."""

LOOKS = 200
"""So many times a rank gives its core away before it looks at the clock."""

TRUSTED = 50
"""After so many times in a row a rank sleeps for a moment: if the peer that it waits for shares its core, giving that
away need not let it run, and the kernel moves a rank that wakes to a core that idles."""

ALONE = 20
"""Of so many looks in vain, where ranks exceed cores, there is no peer that takes the core while it is given away."""

OFTEN = 3
"""After more waits in a row in which that was so, a rank sleeps in them: its peers share another core, and the kernel
moves one of them only to a core that idles."""

HEARING = 6.0
"""For so many seconds a rank waits for another to have heard what all called, longer than that one does."""

NAP = 50e-6
SHORT_NAP = 1e-6
LONG_NAP = 0.001

_sched_yield = os.sched_yield
_now = time.monotonic


@final
class Watch:
    """What a rank of a group sees of the others.

    Args:
        segment: the group's memory.
        group: the members.
        processes: of all members, by rank of the group.
    """

    def __init__(self, segment: Segment, group: Group, processes: Mapping[int, Process]) -> None:
        self._segment = segment
        self._words = segment.words
        self._group = group
        self._states = [segment.layout.control_word(rank) + STATE for rank in range(group.size)]
        self._processes = processes
        others = {rank: process for rank, process in processes.items() if rank != group.rank}
        self._peers = Peers(others)
        self._timeout = group.timeout.total_seconds()
        # Where ranks exceed cores, every look of ours is time that a peer would need.
        self._is_crowded = group.size > len(os.sched_getaffinity(0))
        self.spins = 0 if self._is_crowded else 100
        self._alone = 0
        self._awake = 0.0
        self._main = threading.main_thread().ident
        self._cause = ""
        self.forget()
        self.error: CollectiveError | None = None
        """What closed the group for good, once something has."""

    def forget(self) -> None:
        """Know nothing of the group's calls any more, so that their memory goes with the last who uses it."""
        self.last: Callable[[int], str] = lambda rank: ""
        """Says what a rank called last."""
        self.number: Callable[[], int] = lambda: 0
        """Says which collective call of the group this rank is in."""

    def see(self, words: memoryview, indices: Sequence[int], value: int) -> bool:
        """Give the core away a few times while a word is not yet `value`; return whether all are in the end.

        This is the wait of ranks that come at about the same time, at the least cost.
        """
        if threading.get_ident() != self._main:
            return False
        spins, left = self.spins, LOOKS
        alone_at = LOOKS - ALONE if self._is_crowded else -1
        for index in indices:
            while words[index] != value:
                if spins:
                    spins -= 1
                    continue
                if not left:
                    return False
                if left == alone_at:
                    self._alone += 1
                    if self._alone > OFTEN:
                        time.sleep(SHORT_NAP)
                left -= 1
                _sched_yield()
        if left > alone_at:
            self._alone = 0
        return True

    def until(
        self,
        ready: Callable[[], bool],
        missing: Callable[[], Sequence[int]],
        about: Callable[[], str],
    ) -> None:
        """Block until `ready()`. Whatever else ends the wait, an interruption say, the others are told.

        Args:
            ready: what is waited for.
            missing: the ranks of the group that it is waited for of.
            about: says what the wait is for.

        Raises:
            CollectiveError: a rank died, left, or gave up; or the group's timeout passed.
        """
        try:
            self._until(ready, missing, about)
        except BaseException as error:
            self.give_up(error, about())
            raise

    def _until(
        self,
        ready: Callable[[], bool],
        missing: Callable[[], Sequence[int]],
        about: Callable[[], str],
    ) -> None:
        # A thread that Python's other threads wait for must not spin: it would hold Python's lock.
        is_main = threading.get_ident() == self._main
        if is_main:
            for _ in range(self.spins):
                if ready():
                    return
        start = _now()
        self._awake = start + YIELDING
        looked = self._awake - LOOKING
        nap, looks = NAP, 0
        while not ready():
            now = _now()
            if now - looked > LOOKING:
                looked = now
                self.look(ready, missing, about, now - start)
            if now < self._awake:
                nap = NAP
                if is_main:
                    looks += 1
                    if looks % TRUSTED:
                        _sched_yield()
                    else:
                        time.sleep(SHORT_NAP)
                    continue
            time.sleep(nap)
            nap = min(nap * 1.1, LONG_NAP)

    def stay_awake(self) -> None:
        """Let whoever waits not go to sleep yet: what it waits for has come a step nearer."""
        self._awake = _now() + YIELDING

    def look(
        self, ready: Callable[[], bool], missing: Callable[[], Sequence[int]], about: Callable[[], str], waited: float
    ) -> None:
        """Raise if what is waited for will not come."""
        # In this order: who dies of another's error has told of it before, and who is gone has done before what it
        # did, so that what is waited for is looked at last.
        dead = self._peers.dead()
        gone = [rank for rank, state in enumerate(self._states) if self._words[state] == LEFT]
        failed = self._words[0]
        if ready():
            return
        late = list(missing())
        if failed:
            raise self.fail(self._told(failed - 1, about()))
        for rank in gone:
            if rank in late:
                raise self.fail(self._left(rank, about()))
        if lost := sorted(dead.intersection(late)):
            raise self.fail(self._died(lost, about()))
        if waited > self._timeout:
            raise self.fail(self._too_late(late, about()))

    def check(self) -> None:
        """Raise if the group is closed for good."""
        if self.error is not None:
            raise type(self.error)(f"{self._group}: the group is closed for good since an error: {self.error}")

    def is_over(self) -> bool:
        """Return whether the group is closed for good, by this rank or another."""
        return self.error is not None or bool(self._words[0])

    def check_others(self) -> None:
        """Raise if a rank has given up the call that this one comes to, just before it came, or one before it.

        A call that all have come to is done, also if a faster rank has failed in the next one since.
        """
        if self._words[0] and self._words[1] <= self.number():
            raise self.fail(self._told(self._words[0] - 1, "the call"))

    def failure_of(self, ranks: Sequence[int]) -> CollectiveError | None:
        """Return what went wrong with one of `ranks`, if it said so, died or left."""
        dead = self._peers.dead()
        for rank in ranks:
            if self._words[self._states[rank]] == LEFT:
                return self._left(rank, "a call")
        if lost := sorted(dead.intersection(ranks)):
            return self._died(lost, "a call")
        return None

    def dead(self) -> frozenset[int]:
        """Return the ranks whose processes have ended."""
        return self._peers.dead()

    def decide(self, ranks: Sequence[int], port: int) -> None:
        """Say who goes on after an error, and where they meet."""
        self._segment.say(self._group.rank, json.dumps({"ranks": list(ranks), "port": port}).encode())

    def decided(self, rank: int) -> tuple[tuple[int, ...], int]:
        """Return what a rank decided."""
        report: dict[str, Any] = self.report(rank)
        return tuple(report["ranks"]), int(report["port"])

    def are_gone(self, ranks: Sequence[int]) -> bool:
        """Return whether none of `ranks` will do anything more."""
        dead = self._peers.dead()
        return all(rank in dead or self._words[self._states[rank]] == LEFT for rank in ranks)

    def has_left(self, rank: int) -> bool:
        """Return whether a rank has said that it makes no more calls."""
        return self._words[self._states[rank]] == LEFT

    def has_failed(self, rank: int) -> bool:
        return self._words[self._states[rank]] == FAILED

    def fail(self, error: CollectiveError, **more: object) -> CollectiveError:
        """Close the group for good, let all who wait know, and return the error; again, to tell more of it."""
        self.error = error
        self._say(self._cause or error, "failed", error=type(error).__name__, **more)
        self._words[self._states[self._group.rank]] = FAILED
        if not self._words[0]:
            self._words[1] = self.number()
            self._words[0] = 1 + self._group.rank
        return error

    def give_up(self, error: BaseException, about: str) -> None:
        """Let all who wait know that this rank is not through with `about` and never will be, for `error` came."""
        if self.error is not None:
            return
        if isinstance(error, CollectiveError):
            self.fail(error)
            return
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        who = self.name(self._group.rank)
        self.fail(CollectiveError(f"{self._group}: {about} failed: {who} was in it when it raised {said}"))

    def leave(self, reason: str = "") -> None:
        """Say that this rank makes no more calls; why, if it is for an error."""
        if self._words[self._states[self._group.rank]] == HERE:
            if reason:
                self._say(reason, "raised")
            self._words[self._states[self._group.rank]] = LEFT

    def close(self) -> None:
        """Say that this rank is through with the group, and know nothing of its calls any more."""
        self.leave()
        self._words[self._segment.layout.control_word(self._group.rank) + CLOSED] = 1
        self.forget()

    def _say(self, what: object, kind: str, **more: object) -> None:
        text = str(what)
        while len(report := json.dumps({"kind": kind, "text": text, **more}).encode()) > REPORT - 4:
            text = text[: len(text) // 2] + " ..."
        self._segment.say(self._group.rank, report)

    def report(self, rank: int) -> dict[str, Any]:
        """Return what a rank said of an error, or nothing."""
        for _ in range(10):
            try:
                found: dict[str, Any] = json.loads(self._segment.said(rank))
            except ValueError:
                # It says nothing, or is just saying it.
                time.sleep(0.0005)
            else:
                return found
        return {}

    # The errors.

    def name(self, rank: int) -> str:
        """Return how a rank of the group is called in an error."""
        world = self._group.ranks[rank]
        return f"rank {rank}" if world == rank else f"rank {rank} of the group, which is rank {world} of the world,"

    def _told(self, rank: int, about: str) -> CollectiveError:
        if rank == self._group.rank:
            return self.error or CollectiveError(f"{self._group}: {about} failed: the group was aborted")
        report = self.report(rank)
        waiting = _now() + HEARING
        while report.get("is_final") is False and _now() < waiting and rank not in self._peers.dead():
            # It is hearing what the others called.
            time.sleep(0.001)
            report = self.report(rank)
        kinds = {each.__name__: each for each in (MismatchError, CollectiveTimeoutError)}
        kind = kinds.get(report.get("error", ""), CollectiveError)
        return self._failure(about, f"{report.get('text', 'an error')}, as {self.name(rank)} found", kind)

    def _left(self, rank: int, about: str) -> CollectiveError:
        report = self.report(rank)
        if report.get("kind") == "raised":
            return self._failure(about, f"{self.name(rank)} has ended, for it raised {report['text']}")
        return self._failure(about, f"{self.name(rank)} has closed the group and will not come")

    def _died(self, ranks: Sequence[int], about: str) -> CollectiveError:
        who = " and ".join(f"{self.name(rank)} (process {self._processes[rank].pid})" for rank in ranks)
        return self._failure(about, f"{who} died")

    def _too_late(self, ranks: Sequence[int], about: str) -> CollectiveError:
        who = " and ".join(f"{self.name(rank)}{self._state_of(rank)}" for rank in ranks) or "any rank"
        cause = f"the timeout of {self._timeout:g} s is up, and it waits for {who}"
        return self._failure(about, cause, CollectiveTimeoutError)

    def _failure(self, about: str, cause: str, kind: type[CollectiveError] = CollectiveError) -> CollectiveError:
        self._cause = cause
        return kind(f"{self._group}: {about} failed: {cause}")

    def _state_of(self, rank: int) -> str:
        """Return what is known of a rank that is late."""
        pid = self._processes[rank].pid
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                found = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            return ""
        state = "is stopped" if found in (b"T", b"t") else "runs, but has not come"
        return f" (process {pid} {state}{self.last(rank)})"
