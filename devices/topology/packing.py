"""Trees that use every link to the last unit: Edmonds' theorem, by the steps of Berczi and Frank.

A batch is some units of one root's data that go the same way. It grows by one link at a time, of which it takes as much
as leaves room for all other batches; what it cannot take goes another way, as a batch of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from devices.errors import TopologyError
from devices.topology.capacity import Capacities
from devices.topology.forest import Forest, Path
from devices.topology.maxflow import FlowGraph
from devices.topology.switchless import Unswitched


def packed_forest(capacities: Capacities, shares: Mapping[int, Fraction], time: Fraction) -> Forest:
    """Return a forest that takes no longer than a time in which every endpoint can hear from all.

    Args:
        capacities: the graph.
        shares: how much of the data each endpoint has; together 1.
        time: for each unit of capacity, all data being 1.

    Raises:
        TopologyError: the time is not enough.
    """
    below = math.lcm(
        *((capacity * time).denominator for capacity in capacities.arcs.values()),
        *(share.denominator for share in shares.values()),
    )
    units = {ends: int(capacity * time * below) for ends, capacity in capacities.arcs.items()}
    supplies = {node: int(shares[node] * below) for node in capacities.endpoints}
    graph = Unswitched(capacities.size, units, supplies)
    endpoints = set(capacities.endpoints)
    for node in range(capacities.size):
        if node not in endpoints:
            graph.cut_out(node)
    trees = list(_pack(capacities.size, {ends: units for ends, units in graph.units.items() if units}, supplies))
    return _as_forest(capacities, graph, trees)


@dataclass
class _Batch:
    """A tree that grows: which node each of its nodes hears from, and the depth of each."""

    root: int
    units: int
    parents: dict[int, int] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)


def _pack(size: int, units: dict[tuple[int, int], int], supplies: Mapping[int, int]) -> Iterator[_Batch]:
    left = dict(units)
    waiting = [_Batch(node, supply, {node: node}, {node: 0}) for node, supply in supplies.items() if supply]
    waiting.reverse()
    while waiting:
        batch = waiting.pop()
        while len(batch.parents) < len(supplies):
            for source, target in _candidates(batch, left):
                taken = _room(size, left, batch, waiting, source, target)
                if taken:
                    break
            else:
                raise TopologyError("no schedule in that time: the data of some device has no way left to go")
            if taken < batch.units:
                waiting.append(_Batch(batch.root, batch.units - taken, dict(batch.parents), dict(batch.depths)))
                batch.units = taken
            left[source, target] -= taken
            if not left[source, target]:
                del left[source, target]
            batch.parents[target] = source
            batch.depths[target] = batch.depths[source] + 1
        yield batch


def _candidates(batch: _Batch, left: Mapping[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Return the arcs that a batch could grow by: the shallow ones first, and those that take all of it."""
    found = [ends for ends in left if ends[0] in batch.parents and ends[1] not in batch.parents]
    return sorted(found, key=lambda ends: (batch.depths[ends[0]], -min(left[ends], batch.units), -left[ends], ends))


def _room(
    size: int,
    left: Mapping[tuple[int, int], int],
    batch: _Batch,
    waiting: Sequence[_Batch],
    source: int,
    target: int,
) -> int:
    """Return how many units of an arc a batch can have so that enough is left for the others."""
    graph = FlowGraph(size + len(waiting))
    for (one, other), capacity in left.items():
        back = left.get((other, one), 0)
        if one < other or not back:
            graph.add(one, other, capacity, back)
    others = 0
    for number, other_batch in enumerate(waiting):
        others += other_batch.units
        if len(other_batch.parents) == 1:
            if other_batch.root != source:
                graph.add(source, other_batch.root, other_batch.units)
            continue
        graph.add(source, size + number, other_batch.units)
        for node in other_batch.parents:
            graph.add(size + number, node, other_batch.units)
    wanted = min(left[source, target], batch.units)
    return max(0, graph.flow(source, target, others + wanted) - others)


def _as_forest(capacities: Capacities, graph: Unswitched, batches: Sequence[_Batch]) -> Forest:
    """Return the batches as trees, split where the units of a link are on several paths."""
    ranks = {node: rank for rank, node in enumerate(capacities.endpoints)}
    paths: dict[Path, int] = {}
    roots: list[int] = []
    units: list[int] = []
    rows: list[tuple[list[int], list[int], list[int]]] = []
    loads: dict[tuple[int, int], int] = {}
    rest = {ends: dict(some) for ends, some in graph.paths.items()}
    for batch in sorted(batches, key=lambda each: ranks[each.root]):
        parents = [ranks[batch.parents[node]] for node in capacities.endpoints]
        depths = [batch.depths[node] for node in capacities.endpoints]
        edges = [(parent, node) for node, parent in batch.parents.items() if node != parent]
        left = batch.units
        while left:
            first = {node: next(iter(rest[parent, node])) for parent, node in edges}
            some = min([left, *(rest[ends][first[ends[1]]] for ends in edges)])
            for parent, node in edges:
                on = rest[parent, node]
                on[first[node]] -= some
                if not on[first[node]]:
                    del on[first[node]]
                for arc in itertools.pairwise(first[node]):
                    loads[arc] = loads.get(arc, 0) + some
            hops = [paths.setdefault(first[node], len(paths)) if node in first else -1 for node in capacities.endpoints]
            roots.append(ranks[batch.root])
            units.append(some)
            rows.append((parents, depths, hops))
            left -= some
    count = len(ranks)
    listed = list(paths)

    def path_of(source: int, target: int, hop: int) -> Path:
        found = listed[hop]
        assert (ranks[found[0]], ranks[found[-1]]) == (source, target)
        return found

    table = np.array(rows, dtype=np.int64).reshape(len(rows), 3, count)
    return Forest(
        count, np.array(roots, dtype=np.int64), tuple(units), table[:, 0], table[:, 1], table[:, 2], path_of, loads
    )
