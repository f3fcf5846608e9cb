"""What each rank's way to other domains can carry: as it was told, or as it is measured when the group opens."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

import torch

from devices._backend import Communicator, Group, Message
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.domains.members import Domains
from devices.domains.shares import Shares
from devices.errors import ArgumentError

VARIABLE = "DEVICES_LINK_BANDWIDTH"
"""Bytes per second of this rank's way to other domains; or MEASURE."""

MEASURE = "measure"

_MEASURED = 4 << 20
"""The bytes of each message that is timed, in both directions at once; the fastest of `_TIMES` counts."""

_TIMES = 3

_ALIKE = 1.25
"""Ranks of a domain that are measured within this factor of each other are taken to be alike."""


def told() -> str:
    """Return what the environment of this rank says; "" if nothing."""
    return os.environ.get(VARIABLE, "").strip()


def agreed(said: Sequence[str], group: Group) -> list[float] | str | None:
    """Return what the ranks have said: all bandwidths, MEASURE, or None.

    Raises:
        ArgumentError: what one said has no meaning, or ranks differ in whether they said something; on all ranks.
    """
    kinds = []
    for rank, text in zip(group.ranks, said, strict=True):
        if text not in ("", MEASURE) and not 0 < _number(text) < math.inf:
            raise ArgumentError(
                f"{group}: {VARIABLE} is {text!r} on rank {rank}; it is bytes per second, more than 0, or {MEASURE!r}"
            )
        kinds.append(text if text in ("", MEASURE) else "a number")
    if (other := next((at for at, kind in enumerate(kinds) if kind != kinds[0]), 0)) != 0:
        raise ArgumentError(
            f"{group}: {VARIABLE} is {said[0] or 'not set'} on rank {group.ranks[0]} and {said[other] or 'not set'} on "
            f"rank {group.ranks[other]}; set it on all ranks, to bytes per second or to {MEASURE!r}, or on none"
        )
    return list(map(_number, said)) if kinds[0] == "a number" else kinds[0] or None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def measured(group: Group, domains: Domains, between: Communicator) -> list[float]:
    """Return what the ranks' ways carry while all carry something in both directions; the same on every rank."""
    me, mine = group.rank, domains.of_rank(group.rank)
    place = domains.members[mine].index(me)
    lanes = [ranks for ranks, _ in Shares(domains).lanes(domains.unit) if ranks[mine] == place]
    peers = [domains.members[at][there] for ranks in lanes for at, there in enumerate(ranks) if at != mine]
    # Once for all to be there. What else the host does can only make it slower.
    _swap(between, peers, 1)
    seconds = min(_swap(between, peers, _MEASURED) for _ in range(_TIMES))
    found: list[float] = group.share("bandwidth", float(f"{len(peers) * _MEASURED / seconds:.3g}"))
    for ranks in domains.members:
        speeds = [found[rank] for rank in ranks]
        if max(speeds) <= _ALIKE * min(speeds):
            for rank in ranks:
                found[rank] = sum(speeds) / len(speeds)
    return found


def _swap(between: Communicator, peers: Sequence[int], size: int) -> float:
    """Send each peer `size` bytes and receive as many; return how long it took."""
    data = torch.zeros(size, dtype=torch.uint8)
    start = time.perf_counter()
    pending = [between.exchange([], [Message(torch.empty_like(data), peer, COLLECTIVE_TAG)]) for peer in peers]
    pending += [between.exchange([Message(data, peer, COLLECTIVE_TAG)], []) for peer in peers]
    for each in pending:
        each.wait()
    return time.perf_counter() - start
