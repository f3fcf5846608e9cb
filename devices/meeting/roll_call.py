"""The ranks that open a world or a group together tell what they think it is: they agree, or all hear who does not."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import torch.distributed as dist

from devices.errors import CollectiveError, WorldError
from devices.fabric.host.peers import Peers, Process

Entry = dict[str, Any]
"""What a rank tells of itself: what it thinks, and which process it is."""

_FIRST_LOOK = 0.05
_LONG_LOOK = 0.5


def call_the_roll(
    store: dist.Store,
    what: str,
    ranks: Sequence[int],
    rank: int,
    thinks: Mapping[str, Any],
    timeout: timedelta,
    known: Mapping[int, Entry] | None = None,
) -> dict[int, Entry]:
    """Return what all ranks told of themselves, once all have come and think the same.

    Args:
        store: what they meet by; the same for all who open this, whatever they think of it.
        what: what is opened, in words.
        ranks: who is to come, by ranks of the world.
        rank: this one of them.
        thinks: what all must agree on, by names; JSON.
        timeout: how long to wait.
        known: what ranks told of themselves before, as far as it is known.

    Raises:
        WorldError: on every rank that has come: some think otherwise, or one did not come.
        CollectiveError: on every rank that has come: one has died.
    """
    me = f"rank {rank}"
    gone = Gone(known or {}, rank)
    keys = {each: f"roll/{each}" for each in ranks}
    _set(store, f"roll/{rank}", {"thinks": dict(thinks), **process()})
    seen: dict[int, Entry] = {}
    deadline, look = time.monotonic() + timeout.total_seconds(), _FIRST_LOOK
    while missing := [each for each in ranks if each not in seen]:
        # Who is gone has done before what it did, so that what it may have told is looked at last.
        lost, left = gone(), deadline - time.monotonic()
        all_here = _wait(store, [keys[each] for each in missing], min(look, max(left, 0.001)))
        here = missing if all_here else [each for each in missing if store.check([keys[each]])]
        if here:
            seen |= dict(zip(here, _get(store, [keys[each] for each in here]), strict=True))
            gone = Gone({**(known or {}), **seen}, rank)
        if said := _differ(seen):
            raise refuse(store, me, f"the ranks disagree about {what}: {said}")
        late = [each for each in ranks if each not in seen]
        # Who is complete does not care what others, who are not among `ranks`, make of it.
        if late and store.check(["refused"]):
            kind = CollectiveError if store.check(["died"]) else WorldError
            raise kind(f"{me}: {_get(store, ['refused'])[0]}")
        if late and lost:
            _set(store, "died", True)
            raise CollectiveError(str(refuse(store, me, f"{lost} while {what} was opened")))
        if late and left <= 0:
            came = f"; {_named(sorted(seen))} did" if seen else ""
            raise refuse(store, me, f"{_named(late)} did not come within {timeout} to open {what}{came}")
        look = min(look * 2, _LONG_LOOK)
    _set(store, "all here", True)
    return seen


_world: dict[int, Entry] = {}
"""What the ranks of the world told of themselves when it was opened."""


_opening = 0
"""Which of the worlds that torch opens one after another in one store is open: each names its groups from 1 on."""


def remember_world(entries: Mapping[int, Entry], opening: int = 0) -> None:
    """Keep what the ranks of the world told of themselves: one that dies before a group opens is known by it."""
    global _opening
    _opening = opening
    _world.clear()
    _world.update(entries)


def _known(ranks: Sequence[int]) -> dict[int, Entry]:
    """Return what ranks of the world told when it was opened."""
    # A world that was recovered, or opened another way, has others by these numbers.
    is_same = len(_world) == dist.get_world_size() and _world[dist.get_rank()]["pid"] == os.getpid()
    return {each: _world[each] for each in ranks} if is_same else {}


def gone_from_world(ranks: Sequence[int], rank: int) -> Gone | None:
    """Return what tells whether one of the world's ranks has died; None where they have told nothing of themselves."""
    is_this = len(_world) == len(ranks) and _world[rank]["pid"] == os.getpid()
    return Gone(_world, rank) if is_this else None


def open_together(
    store: dist.Store, what: str, ranks: Sequence[int], rank: int, thinks: Mapping[str, Any], timeout: timedelta
) -> Gone:
    """Call the roll in a store that may have seen the like before: a group of the same name that was closed.

    Returns:
        What tells, from then on, whether one of them has died.
    """
    is_world = not dist.is_initialized()
    if not is_world:
        store = dist.PrefixStore(f"world/{_opening}", store)
    number = store.add(f"openings/{rank}", 1)
    known = {} if is_world else _known(ranks)
    try:
        roll = dist.PrefixStore(f"opening/{number}", store)
        entries = call_the_roll(roll, what, ranks, rank, thinks, timeout, known)
    except BaseException:
        # Another try of this rank alone must meet the others' first.
        store.add(f"openings/{rank}", -1)
        raise
    if is_world:
        remember_world(entries, number)
    return Gone(entries, rank)


@final
class Gone:
    """Says which of some processes of this host have died; nothing of those of other hosts.

    Args:
        entries: what they told of themselves, by rank.
        rank: this one, left out.
    """

    def __init__(self, entries: Mapping[int, Entry], rank: int) -> None:
        where = process()["where"]
        here = {each: entry for each, entry in entries.items() if each != rank and entry["where"] == where}
        self._peers = Peers({each: Process.from_json(entry) for each, entry in here.items()}) if where else None

    def forget(self) -> None:
        """Say nothing from now on: a rank that has done its part may end."""
        self._peers = None

    def dead(self) -> frozenset[int]:
        """Return which have ended."""
        return self._peers.dead() if self._peers else frozenset()

    def __call__(self) -> str:
        dead = self.dead()
        return f"{_named(sorted(dead))} died" if dead else ""


def refuse(store: dist.Store, me: str, said: str) -> WorldError:
    """Let all who wait in the roll call know why it fails, and return the error."""
    _set(store, "refused", said)
    return WorldError(f"{me}: {said}")


def check_alone(store: dist.Store, before: dist.Store, rank: int, size: int) -> None:
    """Raise if another process of this very rank is still opening the world that was opened before in this store.

    Args:
        store: of this opening.
        before: of the opening before it.
        rank: this rank.
        size: the number of ranks.
    """
    # The other may have been counted and not yet have told of itself.
    if not _wait(before, [f"roll/{rank}"], 5) or before.check(["all here"]) or before.check(["refused"]):
        return
    other, mine = _get(before, [f"roll/{rank}"])[0], process()
    if any(other.get(name) != mine[name] for name in mine):
        said = (
            f"RANK is {rank} in two processes: {_told(other)} and {_told(mine)}; give each of the {size} ranks a "
            "number of its own"
        )
        refuse(before, "", said)
        raise refuse(store, f"rank {rank}", said)


def process() -> Entry:
    """Return what tells this process from all others, and where it can be watched from."""
    mine: Entry = {"pid": os.getpid(), "host": platform.node(), "where": ""}
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        mine |= {"where": f"{boot} {Path('/proc/self/ns/pid').readlink()}", **Process.mine().to_json()}
    return mine


def _told(process: Entry) -> str:
    return f"process {process['pid']} on {process['host']}"


def _differ(seen: Mapping[int, Entry]) -> str:
    """Return in what those who came differ."""
    for name in next(iter(seen.values()))["thinks"] if seen else ():
        by_value: dict[str, list[int]] = {}
        for rank, entry in sorted(seen.items()):
            by_value.setdefault(json.dumps(entry["thinks"].get(name)), []).append(rank)
        if len(by_value) > 1:
            few_first = sorted(by_value.items(), key=lambda item: len(item[1]))
            return f"{name} is " + ", and ".join(f"{value} on {_named(ranks)}" for value, ranks in few_first)
    return ""


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _set(store: dist.Store, key: str, value: Any) -> None:
    store.set(key, json.dumps(value))


def _get(store: dist.Store, keys: list[str]) -> list[Any]:
    """Return the values of keys that are there."""
    has_many = store.has_extended_api()  # type: ignore[attr-defined]  # not in the stubs
    found = store.multi_get(keys) if has_many else [store.get(key) for key in keys]
    return [json.loads(value) for value in found]


def _wait(store: dist.Store, keys: list[str], seconds: float) -> bool:
    """Return whether all keys are there within that many seconds."""
    deadline, pause = time.monotonic() + seconds, 0.001
    # A wait of torch's own that was too short prints a warning each time.
    while not store.check(keys):
        if (left := deadline - time.monotonic()) <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 2, 0.05)
    return True
