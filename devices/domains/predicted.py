"""How long verbs take where what passes between domains is all that takes time: what a user is told beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from devices.domains.members import Domains
from devices.domains.shares import Shares

SIZE = 64 << 20
"""The bytes that are spoken of."""


def seconds(size: int, domains: Domains, bandwidths: Sequence[float]) -> dict[str, float]:
    """Return how long each verb takes at best, the links full from the first byte to the last.

    Args:
        size: the bytes of a rank's tensor: of what is reduced, what an all_gather gives, what a reduce_scatter or an
            all_to_all takes, what is broadcast.
        domains: who is where.
        bandwidths: of each rank, by rank of the group, in each direction.
    """
    count, ranks = len(domains.members), sum(map(len, domains.members))
    ways = [sum(bandwidths[rank] for rank in members) for members in domains.members]
    parts = [len(members) / ranks for members in domains.members]
    # What a domain has goes to every other one; the rest comes to it. A reduce_scatter is that the other way round.
    gathered = max(max((count - 1) * part, 1 - part) * size / way for part, way in zip(parts, ways, strict=True))
    swapped = max(
        (1 - part) * size * len(members) / way for part, members, way in zip(parts, domains.members, ways, strict=True)
    )
    return {
        "all_reduce": 2 * (count - 1) / count * size / min(ways),
        "all_gather": gathered,
        "reduce_scatter": gathered,
        "broadcast": size / min(ways),
        "all_to_all": swapped,
    }


def told(domains: Domains, shares: Shares, ranks: Sequence[int]) -> str:
    """Return what is to be said of shares and times, in words; nothing where no bandwidth is known.

    Args:
        domains: who is where.
        shares: how much of what crosses each rank carries.
        ranks: what the ranks of the group are called: their ranks in the world.
    """
    bandwidths = shares.bandwidths
    if bandwidths is None:
        return ""
    each = []
    for name, members in zip(domains.names, domains.members, strict=True):
        way = sum(bandwidths[rank] for rank in members)
        carried = ", ".join(f"rank {ranks[rank]} {bandwidths[rank] / way:.0%}" for rank in members)
        each.append(f"{carried} of what passes {name} at {way / 1e6:.4g} MB/s")
    times = ", ".join(f"{verb} {found:.3g} s" for verb, found in seconds(SIZE, domains, bandwidths).items())
    return f"{'; '.join(each)}; predicted at best for {SIZE >> 20} MiB: {times}"
