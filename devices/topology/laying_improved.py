"""From an order to a faster one, and to seconds that none goes below: what is quick first, until the two meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from devices.topology.graph import Topology
from devices.topology.laying_blocks import blocked, with_cuts
from devices.topology.laying_bound import Bounds, Domain
from devices.topology.laying_levels import Levels, are_as_near, raised
from devices.topology.laying_moves import moves
from devices.topology.laying_parts import Parts
from devices.topology.laying_search import Search
from devices.topology.rings import Cost

PLACES = 1_000, 3_000
"""So many devices are looked at for places in a first search, and in a last one."""

PARTS = 5_000, 50_000
"""So many places are looked at for the domains of 64 devices, of fewer more; the latter where all are as near."""

APART, TOGETHER = 650, 1_700
"""So many steps a search through 64 devices takes, levels apart and together; the former more for fewer, whose steps
take less."""

_EQUAL = 1 + 1e-9


def improved(
    topology: Topology, cost: Cost, bounds: Bounds, order: Sequence[int]
) -> tuple[tuple[int, ...], float, bool]:
    """Return the fastest order that is found, seconds that none goes below, and whether none is faster.

    Args:
        topology: the topology.
        cost: what an order takes; it has a table of loads.
        bounds: what none goes below.
        order: one that is known.
    """
    assert cost.loads is not None
    search = Search(cost, bounds.by_axis)
    best, is_proven = search.improve(order, bounds.seconds, PLACES[0])
    if is_proven:
        return best, bounds.seconds, True
    are_one = are_as_near(cost)
    bound, steps = bounds.seconds, PARTS[are_one] * 64 // min(max(cost.count, 24), 64)
    for domains in bounds.levels:
        parts = Parts(cost, bounds.kinds(domains), domains)
        least, found = parts.least(cost.of(best), steps)
        bound, steps = max(bound, least), parts.left
        best = min([best, *(_placed(domains, each) for each in found)], key=cost.of)
        if cost.of(best) <= bound * _EQUAL:
            return best, bound, True
    if are_one:
        best = _exchanged(best, cost)
        return best, bound, cost.of(best) <= bound * _EQUAL
    cut = with_cuts(topology, cost)
    floors = blocked(cut, bounds.by_axis, cost.of(best))
    bound = max(bound, sum(floors))
    if cost.of(best) <= bound * _EQUAL:
        return best, cost.of(best), True
    changing = moves(topology, cost.loads, [[each.members for each in level] for level in bounds.levels])
    floors = raised(cost, floors, best, changing)
    bound = max(bound, sum(floors))
    if cost.of(best) > bound * _EQUAL:
        apart = round(APART * (64 / min(max(cost.count, 16), 64)) ** 2)
        best, least = Levels(cost, floors, changing).improve(best, apart, TOGETHER)
        bound = max(bound, least)
    if cost.of(best) > bound * _EQUAL:
        best, is_proven = search.improve(best, bound, PLACES[1])
    return best, bound, is_proven or cost.of(best) <= bound * _EQUAL


def _placed(domains: Sequence[Domain], parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the order in which the devices of each domain have the places of its part, one after the other."""
    ranks = {
        place: rank
        for domain, places in zip(domains, parts, strict=True)
        for rank, place in zip(domain.members, places, strict=True)
    }
    return tuple(ranks[place] for place in range(len(ranks)))


def _exchanged(order: Sequence[int], cost: Cost) -> tuple[int, ...]:
    """Return the order after exchanges of two devices, each of which makes it faster; each two are tried once."""
    now, least = list(order), cost.of(order)
    for one, other in itertools.combinations(range(len(now)), 2):
        now[one], now[other] = now[other], now[one]
        found = cost.of(now)
        if found < least / _EQUAL:
            least = found
        else:
            now[one], now[other] = now[other], now[one]
    return tuple(now)
