"""The cuts that are worst for a collective, found by Newton's method: a flow that is too small shows a worse cut.

All of it is in whole numbers. A time is a fraction of seconds per unit of data and of capacity; it only grows, so that
a device that could be fed in less time needs no second look. Devices that are alike are looked at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from devices.topology.capacity import Capacities
from devices.topology.maxflow import FlowGraph
from devices.topology.symmetry import Symmetry, symmetry

Inside = tuple[bool, ...]
"""For each node whether it is on the far side of a cut, the one that data enters."""


def worst_for_gathering(capacities: Capacities, weights: Mapping[int, int]) -> tuple[Fraction, Inside]:
    """Return the least time in which every endpoint can hear from all, and the cut that allows no less.

    Args:
        capacities: the graph, of at least two endpoints.
        weights: how much each endpoint contributes.
    """
    asked = "gathering", tuple(weights.items())
    if asked not in capacities.known:
        capacities.known[asked] = _worst_for_gathering(capacities, weights)
    found: tuple[Fraction, Inside] = capacities.known[asked]
    return found


def _worst_for_gathering(capacities: Capacities, weights: Mapping[int, int]) -> tuple[Fraction, Inside]:
    total = sum(weights.values())
    marks = [0] * capacities.size
    for node, weight in weights.items():
        marks[node] = weight
    kinds = {weight: place for place, weight in enumerate(sorted(set(marks)))}
    found = symmetry(capacities, [kinds[mark] for mark in marks])
    alike = _representatives(capacities.endpoints, found)
    # A single device is often the worst cut; the switches are on the near side.
    time, cut = max(
        (
            (Fraction(total - weights[node], capacities.entering[node]), node)
            for node in alike
        ),
    )  # fmt: skip
    inside = tuple(node == cut for node in range(capacities.size))
    graph = _fed(capacities, time, weights)
    for sink in alike:
        while True:
            graph.reset()
            wanted = total * time.denominator
            if graph.flow(capacities.size, sink, wanted) == wanted:
                break
            inside = tuple(graph.reaching(sink)[: capacities.size])
            heard = sum(weight for node, weight in weights.items() if inside[node])
            time = Fraction(total - heard, capacities.into(inside))
            graph = _fed(capacities, time, weights)
    return time, inside


def worst_for_one(capacities: Capacities, root: int) -> tuple[int, Inside]:
    """Return the least capacity between a root and any endpoint, and the cut that it is of."""
    asked = "one", root
    if asked not in capacities.known:
        capacities.known[asked] = _worst_for_one(capacities, root)
    found: tuple[int, Inside] = capacities.known[asked]
    return found


def _worst_for_one(capacities: Capacities, root: int) -> tuple[int, Inside]:
    marks = [int(node == root) for node in range(capacities.size)]
    sinks = [
        node for node in _representatives(capacities.endpoints, symmetry(capacities, marks)) if node != root
    ]  # fmt: skip
    best: int | None = None
    inside: Inside = ()
    graph = FlowGraph(capacities.size)
    _add_links(graph, capacities, 1)
    graph.keep()
    for sink in sorted(sinks, key=lambda node: capacities.entering[node]):
        graph.reset()
        pushed = graph.flow(root, sink, best)
        if best is None or pushed < best:
            best, inside = pushed, tuple(graph.reaching(sink))
    assert best is not None
    return best, inside


def least_cut(capacities: Capacities) -> tuple[int, Inside]:
    """Return the least capacity of a cut that separates two endpoints, and the cut."""
    first, *_ = capacities.endpoints
    into, far = worst_for_one(capacities, first)
    out, near = worst_for_one(capacities.reversed(), first)
    return (into, far) if into <= out else (out, tuple(not there for there in near))


@final
@dataclass(frozen=True)
class Shares:
    """How much of the data each endpoint is to reduce, and what allows no less time.

    Args:
        time: the least in which all endpoints can hear of everything, each contributing its share.
        shares: for each endpoint; together 1, unless `parts` says that it cannot be done sooner.
        parts: disjoint sets of endpoints that each need to be told of what the others have.
    """

    time: Fraction
    shares: dict[int, Fraction]
    parts: tuple[frozenset[int], ...]


def best_shares(capacities: Capacities, signed: bool = False, backwards: bool = False) -> Shares:
    """Return the shares with which gathering takes the least time.

    In time t a set T of endpoints, not all of them, hears t * into(T), so the shares in it must be 1 - t * into(T) at
    least. The least shares that do it are found one endpoint (with those alike) after the other, and their sum says
    whether t is enough; if it is not, sets that are tight show a longer time.

    Args:
        capacities: the graph, of at least two endpoints.
        signed: whether shares below 0 count too: then `parts` are all endpoints, which bounds any all-reduce.
        backwards: whether the last endpoints are looked at first; others may then have the larger shares.
    """
    asked = "shares", signed, backwards
    if asked not in capacities.known:
        capacities.known[asked] = _best_shares(capacities, signed, backwards)
    known: Shares = capacities.known[asked]
    return known


def _best_shares(capacities: Capacities, signed: bool, backwards: bool) -> Shares:
    found = symmetry(capacities)
    groups: dict[int, list[int]] = {}
    for node in capacities.endpoints:
        groups.setdefault(found.orbits[node], []).append(node)
    count = len(capacities.endpoints)
    parts = tuple(frozenset([node]) for node in capacities.endpoints)
    time = Fraction(count - 1, sum(capacities.entering[node] for node in capacities.endpoints))
    while True:
        shares: dict[int, Fraction] = {}
        tight: list[frozenset[int]] = []
        for group in reversed(groups.values()) if backwards else groups.values():
            share, there = _least_share(capacities, time, shares, group, signed)
            shares.update(dict.fromkeys(group, share))
            if there is not None:
                tight.append(there)
        if sum(shares.values()) <= 1:
            return Shares(time, shares, parts)
        parts = _closed(capacities.endpoints, tight, found)
        rates = _least_into(capacities, parts, found)
        longer = Fraction(len(parts) - 1, sum(rates))
        assert longer > time, "the sets that are tight do not show a longer time"
        time = longer


def into_part(capacities: Capacities, part: Iterable[int]) -> tuple[int, Inside]:
    """Return the least capacity into a set of endpoints, switches being on either side, and the cut."""
    graph = FlowGraph(capacities.size + 2)
    source, sink = capacities.size, capacities.size + 1
    _add_links(graph, capacities, 1)
    everything = sum(capacities.arcs.values()) + 1
    inside = set(part)
    for node in capacities.endpoints:
        if node in inside:
            graph.add(node, sink, everything)
        else:
            graph.add(source, node, everything)
    pushed = graph.flow(source, sink)
    return pushed, tuple(graph.reaching(sink)[: capacities.size])


def sides_into(capacities: Capacities, found: Shares) -> list[list[int]]:
    """Return for each part of those that allow no less time the nodes behind the least cut into it."""
    around: list[dict[int, int]] = [{} for _ in range(capacities.size)]
    for (source, target), capacity in capacities.arcs.items():
        around[target][source] = capacity
    # Most often a part has the switches that hear most from it on its side.
    sides, rate = [], 0
    for part in found.parts:
        side = _with_switches(capacities, around, part)
        rate += sum(rate for node in side for source, rate in around[node].items() if source not in side)
        sides.append(sorted(side))
    if rate * found.time == len(found.parts) - 1:
        return sides
    cuts = (into_part(capacities, part)[1] for part in found.parts)
    return [[node for node, there in enumerate(inside) if there] for inside in cuts]


def _with_switches(capacities: Capacities, around: Sequence[Mapping[int, int]], part: frozenset[int]) -> set[int]:
    endpoints = set(capacities.endpoints)
    side = set(part)
    while True:
        near = {source for node in side for source in around[node]} - side - endpoints
        more = {
            node
            for node in near
            if 2 * sum(rate for source, rate in around[node].items() if source in side) > capacities.entering[node]
        }
        if not more:
            return side
        side |= more


def _representatives(nodes: Sequence[int], found: Symmetry) -> list[int]:
    return list({found.orbits[node]: node for node in reversed(nodes)}.values())


def _add_links(graph: FlowGraph, capacities: Capacities, times: int) -> None:
    for (source, target), capacity in capacities.arcs.items():
        back = capacities.arcs.get((target, source), 0)
        if source < target or not back:
            graph.add(source, target, capacity * times, back * times)


def _fed(capacities: Capacities, time: Fraction, weights: Mapping[int, int]) -> FlowGraph:
    """Return the graph in which a source, the last node, feeds each endpoint what it contributes."""
    graph = FlowGraph(capacities.size + 1)
    _add_links(graph, capacities, time.numerator)
    for node, weight in weights.items():
        graph.add(capacities.size, node, weight * time.denominator)
    graph.keep()
    return graph


def _least_share(
    capacities: Capacities, time: Fraction, known: Mapping[int, Fraction], group: Sequence[int], signed: bool
) -> tuple[Fraction, frozenset[int] | None]:
    """Return the least share that each endpoint of a group needs, and a set that it is tight in.

    Args:
        capacities: the graph.
        time: the time that there is.
        known: the shares of the endpoints that were looked at before; those to come are taken to have enough.
        group: endpoints that are alike.
        signed: whether the share may be below 0.
    """
    first = group[0]
    members = frozenset(group)
    alone, _ = into_part(capacities, [first])
    share = 1 - time * alone
    there: frozenset[int] | None = frozenset([first])
    if share < 0 and not signed:
        share, there = Fraction(0), None
    while True:
        inside, value = _neediest(capacities, time, known, members, share, first)
        if value >= 1:
            return share, there
        there = frozenset(node for node in capacities.endpoints if inside[node])
        ours = len(there & members)
        others = sum((known[node] for node in there - members), Fraction(0))
        share = (1 - time * capacities.into(inside) - others) / ours


def _neediest(
    capacities: Capacities,
    time: Fraction,
    known: Mapping[int, Fraction],
    members: frozenset[int],
    share: Fraction,
    first: int,
) -> tuple[Inside, Fraction]:
    """Return the set that hears least, t * into(T) and the shares in it together, of those with `first` in it."""
    shares = {**known, **dict.fromkeys(members, share)}
    below = math.lcm(time.denominator, *(each.denominator for each in shares.values()))
    scale = int(time * below)
    graph = FlowGraph(capacities.size + 2)
    source, sink = capacities.size, capacities.size + 1
    _add_links(graph, capacities, scale)
    everything = sum(capacities.arcs.values()) * scale + below * (len(capacities.endpoints) + 1)
    for node in capacities.endpoints:
        if node not in shares:
            graph.add(source, node, everything)
        elif shares[node] >= 0:
            graph.add(source, node, int(shares[node] * below))
        else:
            # A share below 0 is a reason to be in the set: what stays outside pays for it.
            graph.add(node, sink, int(-shares[node] * below))
    graph.add(first, sink, everything)
    graph.flow(source, sink, everything)
    inside = tuple(graph.reaching(sink)[: capacities.size])
    value = time * capacities.into(inside) + sum((share for node, share in shares.items() if inside[node]), Fraction(0))
    return inside, value


def _closed(endpoints: Sequence[int], tight: Sequence[frozenset[int]], found: Symmetry) -> tuple[frozenset[int], ...]:
    """Return the sets, with all that are alike, joined where they share an endpoint."""
    orbits = {found.orbits[node] for there in tight for node in there}
    parents = {node: node for node in endpoints if found.orbits[node] in orbits}

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    moving: dict[int, list[Mapping[int, int]]] = {node: [] for node in parents}
    for move in found.moves:
        for node in move:
            if node in moving:
                moving[node].append(move)
    pairs = deque((next(iter(there)), node) for there in tight for node in there)
    while pairs:
        one, other = pairs.popleft()
        mine, yours = root(one), root(other)
        if mine == yours:
            continue
        parents[mine] = yours
        for move in (*moving[one], *moving[other]):
            pairs.append((move.get(one, one), move.get(other, other)))
    parts: dict[int, set[int]] = {}
    for node in parents:
        parts.setdefault(root(node), set()).add(node)
    return tuple(frozenset(part) for part in parts.values())


def _least_into(capacities: Capacities, parts: Sequence[frozenset[int]], found: Symmetry) -> list[int]:
    """Return the least capacity into each part; parts that a symmetry takes to each other have the same."""
    known: dict[tuple[int, ...], int] = {}
    rates = []
    for part in parts:
        # Parts are images of each other as soon as they share an orbit, for their images do not overlap.
        key = tuple(sorted({found.orbits[node] for node in part}))
        if key not in known:
            known[key] = into_part(capacities, part)[0]
        rates.append(known[key])
    return rates
