"""How an all_reduce shares each cable: one way more of it for summing up, the other way more for spreading the sum.

What is summed up goes the ways on which the sum is spread, backwards. So a cable that is as fast in both directions may
spread more in one and sum up more in the other, as long as both together fit. A device whose least share is below 0 has
more cable than it needs: it gives others some of it, by a flow from it to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from devices.topology.alike import classes
from devices.topology.capacity import Capacities
from devices.topology.cuts import Shares
from devices.topology.maxflow import FlowGraph
from devices.topology.translations import Translations


def oriented(
    capacities: Capacities, found: Shares, moved: Translations | None = None
) -> tuple[dict[int, Fraction], Capacities, Fraction] | None:
    """Return shares that are not below 0, a graph on which they spread, and the time that it takes.

    Args:
        capacities: a graph whose arcs are as fast one way as the other.
        found: its best shares, signed.
        moved: moves that the result is to look the same after.

    Returns:
        None where no flow does it. The graph has its own unit; its arcs, backwards, are what is left for summing up.
    """
    if all(share >= 0 for share in found.shares.values()):
        return found.shares, capacities, found.time
    below = math.lcm(found.time.denominator, *(share.denominator for share in found.shares.values()))
    scale = int(found.time * below)
    graph = FlowGraph(capacities.size + 2)
    source, sink = capacities.size, capacities.size + 1
    cables = {
        ends: graph.add(*ends, capacity * scale, capacity * scale)
        for ends, capacity in capacities.arcs.items()
        if ends[0] < ends[1]
    }  # fmt: skip
    givers, takers = 0, {}
    for node, share in found.shares.items():
        if share < 0:
            givers += int(-share * below)
            graph.add(source, node, int(-share * below))
        else:
            takers[node] = graph.add(node, sink, int(share * below))
    if graph.flow(source, sink, givers) < givers:
        return None
    # The arcs of a pair hold what is left of each way, which is what can still be spread there, turned round.
    arcs: dict[tuple[int, int], Fraction] = {}
    for ends, number in cables.items():
        arcs[ends] = Fraction(graph.capacities[number ^ 1])
        arcs[ends[::-1]] = Fraction(graph.capacities[number])
    shares = {
        node: Fraction(graph.capacities[takers[node]], below) if node in takers else Fraction(0)
        for node in found.shares
    }  # fmt: skip
    if moved is not None:
        arcs, shares = _evened(capacities, moved, arcs, shares)
    whole = math.lcm(*(units.denominator for units in arcs.values()))
    spread = Capacities(
        capacities.size,
        capacities.endpoints,
        {ends: int(units * whole) for ends, units in arcs.items() if units},
        capacities.unit,
        capacities.colours,
    )
    return shares, spread, Fraction(1, below * whole)


def _evened(
    capacities: Capacities,
    moved: Translations,
    arcs: Mapping[tuple[int, int], Fraction],
    shares: Mapping[int, Fraction],
) -> tuple[dict[tuple[int, int], Fraction], dict[int, Fraction]]:
    """Return the mean over all moves, which fits as each of them does, and looks the same after any."""
    alike, sizes, _ = classes(capacities, moved)
    sums = [Fraction(0)] * len(sizes)
    for ends, units in arcs.items():
        sums[alike[ends]] += units
    blocks = [Fraction(0)] * moved.blocks
    for rank, node in enumerate(capacities.endpoints):
        blocks[rank // moved.count] += shares[node] / moved.count
    return (
        {ends: sums[number] / sizes[number] for ends, number in alike.items()},
        {node: blocks[rank // moved.count] for rank, node in enumerate(capacities.endpoints)},
    )
