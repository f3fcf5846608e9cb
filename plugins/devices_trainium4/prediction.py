"""What a verb takes over NVLink and EFA: bytes over each, and seconds by their bandwidths. None of it was measured.

No latency of NVLink is announced, so none is counted. What must cross between two domains crosses once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from devices import Predicted, Side, catalogue

NVLINK, EFA = "NVLink", "EFA"

EFA_LATENCY = 15e-6
"""AWS measured it over EFAv3, from the memory of one Trainium2 to that of another (SDK, inter-node collectives)."""

USED = (1.0, 0.75, 0.4)
"""How much of a link's bandwidth is reached at best, as expected, and at worst: assumed, as of any new software."""

PIECES = 16
"""In so many pieces, as expected, what crosses and what goes on in the domains overlap."""


@final
@dataclass(frozen=True, slots=True)
class Load:
    """What one verb puts on the links, in one direction.

    Args:
        links: bytes of the busiest rank over NVLink, by the place of its domain.
        all_links: bytes that all ranks send over NVLink.
        bridge: bytes of the busiest rank over EFA.
        all_bridge: bytes that all ranks send over EFA.
        crossings: how often something crosses, one after the other.
    """

    links: Sequence[float]
    all_links: float
    bridge: float = 0.0
    all_bridge: float = 0.0
    crossings: int = 0


def predicted(
    verb: str, size: int, root: int, domains: Sequence[Sequence[Side]], assumed: Mapping[str, str]
) -> Predicted:
    """Return what a verb takes over one domain, or over two with EFA between them."""
    counts = [sum(len(side.ranks) for side in domain) for domain in domains]
    if len(domains) == 1:
        load = _in_one(verb, float(size), counts[0], assumed["in_switch_reduction"] == "yes")
    else:
        home = next((place for place, domain in enumerate(domains) for side in domain if root in side.ranks), 0)
        load = _over_two(verb, float(size), counts, home)
    inside = max(count / _link(domain, assumed) for count, domain in zip(load.links, domains, strict=True))
    bridge = load.bridge / _bridge(assumed)
    wait = load.crossings * EFA_LATENCY
    best, usual, worst = ((inside / used, bridge / used) for used in USED)
    return Predicted(
        max(best) + wait,
        max(usual) + min(usual) / PIECES + wait,
        sum(worst) + 2 * wait,
        {NVLINK: load.all_links, EFA: load.all_bridge},
    )


def _link(domain: Sequence[Side], assumed: Mapping[str, str]) -> float:
    """Return the bandwidth in one direction of the slowest chip of a domain."""
    rates = []
    for side in domain:
        if side.target == "trainium4":
            rate = _figure("trainium4-nvlink-fusion")
            rates.append(rate / 2 if assumed["link_bandwidth"] == "half" else rate)
        else:
            rates.append(_figure(side.target))
    return min(rates)


def _figure(target: str) -> float:
    value = catalogue.load(target).figure("link_bandwidth_one_way").value
    assert isinstance(value, (int, float))
    return float(value)


def _bridge(assumed: Mapping[str, str]) -> float:
    """Return what a chip sends over EFA, in bytes per second: the assumption names it in bits."""
    gigabits, unit = assumed["bridge"].split()
    assert unit == "Gbps"
    return float(gigabits) * 1e9 / 8


def _in_one(verb: str, size: float, count: int, reduces: bool) -> Load:
    """Return the load of a verb over one domain of so many ranks; whether its switches add up."""
    share = size * (count - 1) / count
    if verb == "all_reduce":
        each = size if reduces and count > 1 else 2 * share
        return Load([each], each * count)
    if verb in ("all_gather", "reduce_scatter", "all_to_all"):
        return Load([share], share * count)
    if verb in ("gather", "scatter"):
        return Load([share], share)
    if verb in ("broadcast", "reduce"):
        return Load([size], size * (count - 1))
    if verb == "permute":
        return Load([size], size * count)
    if verb in ("send", "recv"):
        return Load([size], size if verb == "send" else 0.0)
    return Load([0.0], 0.0)


def _over_two(verb: str, size: float, counts: Sequence[int], home: int) -> Load:
    """Return the load of a verb over two domains of so many ranks each; the root is in the one at `home`."""
    whole, part = sum(counts), size / sum(counts)
    others = [whole - count for count in counts]
    shares = [size * (count - 1) / count for count in counts]
    if verb == "all_reduce":
        links = [2 * share for share in shares]
        return Load(links, _all(links, counts), size / min(counts), 2 * size, 2)
    if verb == "all_gather":
        handed = [part * (count - 1) * (1 + other / count) for count, other in zip(counts, others, strict=True)]
        return Load(handed, _all(handed, counts), part * _most(counts, others), size, 1)
    if verb == "reduce_scatter":
        return Load(shares, _all(shares, counts), part * _most(counts, others), size, 1)
    if verb == "all_to_all":
        links = [part * (count - 1) for count in counts]
        bridge = [part * other for other in others]
        return Load(links, _all(links, counts), max(bridge), _all(bridge, counts), 1)
    if verb in ("gather", "scatter"):
        far, near = part * others[home], part * (counts[home] - 1)
        return Load([near if place == home else 0.0 for place in range(2)], near, far, far, 1)
    if verb in ("broadcast", "reduce"):
        return Load([size if count > 1 else 0.0 for count in counts], size * (whole - 2), size / min(counts), size, 1)
    if verb == "permute":
        # Round in a ring, of which two messages cross.
        return Load([size, size], size * (whole - 2), size, 2 * size, 1)
    if verb in ("send", "recv"):
        return Load([0.0, 0.0], 0.0, size, size if verb == "send" else 0.0, 1)
    return Load([0.0, 0.0], 0.0, 0.0, 0.0, 2)


def _all(each: Sequence[float], counts: Sequence[int]) -> float:
    return sum(one * count for one, count in zip(each, counts, strict=True))


def _most(counts: Sequence[int], others: Sequence[int]) -> float:
    """Return how many parts cross at the busiest rank, one way: its own, or its share of what its domain gets."""
    return max(1.0, *(other / count for count, other in zip(counts, others, strict=True)))
