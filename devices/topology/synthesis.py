"""A schedule for a verb on a topology, as fast as its bound where that can be found in time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import final

from devices.algorithms.schedule import Recv, Schedule
from devices.errors import TopologyError, did_you_mean
from devices.topology import programs
from devices.topology.alike import alike_forest
from devices.topology.bounds import VERBS, Bound, bound_on
from devices.topology.capacity import Capacities
from devices.topology.cuts import Shares, best_shares, worst_for_gathering, worst_for_one
from devices.topology.direct import direct
from devices.topology.exchange import exchanged
from devices.topology.forest import Forest, Path
from devices.topology.graph import Topology
from devices.topology.grown import grown_forest
from devices.topology.orientation import oriented
from devices.topology.packing import packed_forest
from devices.topology.programs import Route
from devices.topology.rehung import rehung_forest
from devices.topology.spanning import spanning_forest
from devices.topology.translations import translations

EXACT = 64
"""Up to so many devices trees are packed exactly, whatever the graph; more only where all devices are alike."""

NEAR = Fraction(999, 1000)
"""For more devices than `EXACT`, trees that reach so much of the least time's bandwidth are good enough."""

CLOSE = Fraction(99, 100)
"""Trees for an all_reduce on more devices than `EXACT` that reach less are compared with others."""

SMALL = 32
"""For more devices than that, trees are first looked for that are moved to many devices."""

BLOCKS = 8
"""At most so many kinds of devices have trees of their own that are moved to all alike."""

LONGER = (Fraction(1), *(1 + Fraction(1, 2**part) for part in (6, 4, 3, 2, 1, 0)))
"""Times the least time in which trees are looked for."""


@final
@dataclass(frozen=True)
class Plan:
    """A schedule, the way that each of its messages takes, and how it compares with the bound.

    Args:
        topology: what it is for.
        schedule: what each rank does, for `devices.algorithms`.
        bound: what no schedule is faster than.
        seconds_per_byte: what it takes, by the link that has most to do; a byte is one of the bound's. It is reached
            as data is cut into slices that follow each other; latency is left out.
        shares: for an all_reduce, how much of the data each rank sums up; else how much it has.
    """

    topology: Topology = field(repr=False)
    schedule: Schedule
    bound: Bound
    seconds_per_byte: Fraction
    shares: tuple[Fraction, ...] = field(repr=False)
    _route: Route = field(repr=False)

    @property
    def ratio(self) -> float:
        """How much of the bandwidth that could at best be had it has: 1.0 if nothing is faster."""
        return float(self.bound.seconds_per_byte / self.seconds_per_byte) if self.seconds_per_byte else 1.0

    def route(self, source: int, target: int, chunk: int, reduces: bool = False) -> tuple[str, ...]:
        """Return the nodes that a message goes through, both ranks' devices included.

        Args:
            source: the rank that sends.
            target: the rank that receives.
            chunk: where it is received.
            reduces: whether it is combined with what is there.
        """
        return tuple(self.topology.nodes[node].name for node in self._route(source, target, chunk, reduces))

    def routes(self) -> Iterator[tuple[int, int, int, bool, tuple[str, ...]]]:
        """Yield for every message source, target, the chunk where it comes, whether it is reduced, and the nodes."""
        for target in range(self.schedule.size):
            for step in self.schedule.program(target):
                for action in step:
                    if isinstance(action, Recv):
                        message = action.peer, target, action.chunk, action.reduce
                        yield (*message, self.route(*message))

    def to_json(self) -> str:
        """Return the schedule as `Schedule.to_json` has it, with the bound and the route of every message."""
        return json.dumps(
            {
                "schedule": json.loads(self.schedule.to_json()),
                "seconds_per_byte": str(self.seconds_per_byte),
                "bound": str(self.bound.seconds_per_byte),
                "routes": [[*message[:4], list(message[4])] for message in self.routes()],
            },
            separators=(",", ":"),
        )


def synthesize(topology: Topology, verb: str, root: int = 0) -> Plan:
    """Return a schedule for a verb on a topology.

    Up to `EXACT` devices it is as fast as the bound, and on any number of devices of a few kinds to `NEAR`; only an
    all_to_all, whose bound need not be reached, and graphs whose links are not as fast one way as the other may keep it
    from that. On more devices that are not alike, as where a cable is damaged, it is near the bound, and nothing is
    promised. `Plan.ratio` says how close it is. An all_reduce has shares that fit where devices differ.

    Args:
        topology: whose links have bandwidths.
        verb: "all_gather", "reduce_scatter", "broadcast", "reduce", "all_reduce" or "all_to_all".
        root: for broadcast and reduce.

    Raises:
        TopologyError: a bandwidth is not known, or no path leads from one device to another.

    >>> from devices.topology import switch
    >>> fusion = switch(16, [1800e9] * 8 + [900e9] * 8)
    >>> plan = synthesize(fusion, "all_reduce")
    >>> plan.ratio, round(plan.bound.bytes_per_second / 1e9)
    (1.0, 720)
    """
    if verb not in VERBS:
        raise TopologyError(f"no schedule for {verb!r}{did_you_mean(str(verb), VERBS)}; known: {', '.join(VERBS)}")
    capacities = Capacities.of(topology)
    least = bound_on(topology, capacities, verb, root)
    size = len(capacities.endpoints)
    rooted = root if verb in ("broadcast", "reduce") else None
    even = dict.fromkeys(capacities.endpoints, Fraction(1, size))
    if size == 1:
        return Plan(topology, programs.nothing(verb, rooted), least, Fraction(0), (Fraction(1),), _no_route)
    if verb == "all_to_all":
        schedule, route, loads, total = exchanged(capacities, least.seconds_per_byte * capacities.unit)
        return _plan(topology, schedule, least, capacities, [(loads, total)], tuple(even.values()), route)
    shares = even
    if rooted is not None:
        shares = {node: Fraction(rank == root) for rank, node in enumerate(capacities.endpoints)}
    up = down = None
    if verb == "all_reduce":
        shares, up, down = _for_all_reduce(capacities, least.seconds_per_byte * capacities.unit)
    elif verb in ("all_gather", "broadcast"):
        down = _forest(capacities, shares)
    else:
        up = _forest(capacities.reversed(), shares)
    if verb == "all_gather" and down:
        schedule, route = programs.all_gather(down)
    elif verb == "broadcast" and down:
        schedule, route = programs.broadcast(down, root)
    elif verb == "reduce_scatter" and up:
        schedule, route = programs.reduce_scatter(up)
    elif verb == "reduce" and up:
        schedule, route = programs.reduce(up, root)
    else:
        assert up is not None
        assert down is not None
        schedule, route = programs.all_reduce(up, down)
    used = [] if down is None else [(down.loads, down.total)]
    if up is not None:
        used.append(({(target, source): units for (source, target), units in up.loads.items()}, up.total))
    return _plan(
        topology, schedule, least, capacities, used, tuple(shares[node] for node in capacities.endpoints), route
    )


def _for_all_reduce(capacities: Capacities, least: Fraction) -> tuple[dict[int, Fraction], Forest, Forest]:
    """Return the share that each endpoint sums up, and the trees for that and for spreading it."""
    if capacities.is_symmetric:
        return _for_all_reduce_on_cables(capacities)
    # A tree loads both ways of a cable alike if data comes back where it went: then the slower one counts.
    narrowed, time = None, Fraction(0)
    if (cables := capacities.narrowed()) is not None:
        narrowed = _for_all_reduce_on_cables(cables)
        time = _both_ways(narrowed[1]).time(capacities.arcs)
        if time * CLOSE <= least:
            return narrowed
    shares = best_shares(capacities).shares
    up, down = _forest(capacities.reversed(), shares), _forest(capacities, shares)
    loads = {ends: Fraction(units, down.total) for ends, units in down.loads.items()}
    for (target, source), units in up.loads.items():
        loads[source, target] = loads.get((source, target), Fraction(0)) + Fraction(units, up.total)
    if narrowed is not None and time <= max(load / capacities.arcs[ends] for ends, load in loads.items()):
        return narrowed
    return shares, up, down


def _for_all_reduce_on_cables(capacities: Capacities) -> tuple[dict[int, Fraction], Forest, Forest]:
    """Return the same on cables that are as fast one way as the other."""
    if len(capacities.endpoints) > EXACT:
        return _for_all_reduce_of_many(capacities)
    found: list[tuple[dict[int, Fraction], Forest]] = []
    moved = translations(capacities) if len(capacities.endpoints) > SMALL else None
    for signed in _signed_shares(capacities):
        if (ways := oriented(capacities, signed, moved)) is not None:
            shares, graph, time = ways
            forest = _forest(graph, shares, time)
            if _is_enough(forest, graph, time):
                return shares, forest, forest
            found.append((shares, forest))
        if len(capacities.endpoints) > SMALL:
            break
    shares = best_shares(capacities).shares
    found.append((shares, _forest(capacities, shares)))
    shares, forest = min(found, key=lambda each: _both_ways(each[1]).time(capacities.arcs))
    return shares, forest, forest


def _for_all_reduce_of_many(capacities: Capacities) -> tuple[dict[int, Fraction], Forest, Forest]:
    """Return the same where there are many endpoints."""
    signed = best_shares(capacities, signed=True)
    moved = translations(capacities)
    best: Forest | None = None
    if (ways := oriented(capacities, signed, moved)) is not None:
        shares, graph, time = ways
        best = _alike(graph, shares, time)
        if best is not None and _is_enough(best, graph, time):
            return shares, best, best
    links = direct(capacities)

    def taken(forest: Forest) -> Fraction:
        return _both_ways(forest).time(capacities.arcs)

    found = spanning_forest(links, float(2 * signed.time))
    if taken(found) * CLOSE > 2 * signed.time:
        # As where rates differ much, and paths past switches are long.
        found = min(found, spanning_forest(links, float(2 * signed.time), thrifty=False), key=taken)
    if best is not None and taken(best) <= taken(found):
        return shares, best, best
    if taken(found) * CLOSE > 2 * signed.time:
        shares = best_shares(capacities).shares
        other = _forest(capacities, shares)
        if taken(other) < taken(found):
            return shares, other, other
    carried = dict.fromkeys(capacities.endpoints, 0)
    for root, units in zip(found.roots.tolist(), found.units, strict=True):
        carried[capacities.endpoints[root]] += units
    return {node: Fraction(units, found.total) for node, units in carried.items()}, found, found


def _signed_shares(capacities: Capacities) -> Iterator[Shares]:
    """Yield several shares that are as good: not all of them leave the switches a way to carry them."""
    first = best_shares(capacities, signed=True)
    yield first
    if any(share < 0 for share in first.shares.values()):
        second = best_shares(capacities, signed=True, backwards=True)
        middle = {node: (share + second.shares[node]) / 2 for node, share in first.shares.items()}
        yield Shares(first.time, middle, first.parts)
        yield second


def _both_ways(forest: Forest) -> Forest:
    """Return a forest that loads each arc as if data also came back on it."""
    loads = dict(forest.loads)
    for (source, target), units in forest.loads.items():
        loads[target, source] = loads.get((target, source), 0) + units
    return dataclasses.replace(forest, loads=loads)


def _forest(capacities: Capacities, shares: Mapping[int, Fraction], time: Fraction | None = None) -> Forest:
    if time is None:
        time = _least_time(capacities, shares)
    best = _alike(capacities, shares, time)
    if best is not None and _is_enough(best, capacities, time):
        return best
    size = len(capacities.endpoints)
    if size > EXACT:
        forests = [] if best is None else [best]
        has_root = max(shares.values()) == 1
        if has_root or not capacities.is_symmetric:
            forests.append(grown_forest(capacities, shares))
        can_hang = capacities.is_symmetric or capacities.size == size
        if can_hang and (not forests or not _is_enough(forests[-1], capacities, time)):
            forests.append(rehung_forest(direct(capacities), shares, time))
        return min(forests, key=lambda each: each.time(capacities.arcs))
    # The first is enough unless more enters a switch than leaves it, or less.
    for longer in LONGER if size <= SMALL else LONGER[:1]:
        with contextlib.suppress(TopologyError):
            return packed_forest(capacities, shares, time * longer)
    found = grown_forest(capacities, shares)
    return found if best is None or found.time(capacities.arcs) < best.time(capacities.arcs) else best


def _alike(capacities: Capacities, shares: Mapping[int, Fraction], time: Fraction) -> Forest | None:
    """Return trees that are moved to all devices that are alike; None where few are, or their shares are not."""
    size = len(capacities.endpoints)
    moved = translations(capacities)
    if moved is None or moved.blocks > BLOCKS or (moved.blocks > 1 and size <= SMALL):
        return None
    values = [shares[node] for node in capacities.endpoints]
    if any(len(set(values[start : start + moved.count])) > 1 for start in range(0, size, moved.count)):
        return None
    return alike_forest(capacities, moved, shares, time)


def _is_enough(forest: Forest, capacities: Capacities, time: Fraction) -> bool:
    """Return whether a forest takes the least time, or on many devices about that."""
    taken = forest.time(capacities.arcs)
    return taken <= time or (len(capacities.endpoints) > EXACT and taken * NEAR <= time)


def _least_time(capacities: Capacities, shares: Mapping[int, Fraction]) -> Fraction:
    """Return the least time in which all hear of everything, for each unit of capacity and all data being 1."""
    holders = [node for node, share in shares.items() if share]
    if len(holders) == 1:
        rate, _ = worst_for_one(capacities, holders[0])
        return Fraction(1, rate)
    below = math.lcm(*(share.denominator for share in shares.values()))
    time, _ = worst_for_gathering(capacities, {node: int(share * below) for node, share in shares.items()})
    return time / below


def _plan(
    topology: Topology,
    schedule: Schedule,
    least: Bound,
    capacities: Capacities,
    used: Sequence[tuple[Mapping[tuple[int, int], int | Fraction], int]],
    shares: tuple[Fraction, ...],
    route: Route,
) -> Plan:
    """Put a plan together; `used` has loads in units of which so many are all the data."""
    whole = math.lcm(*(total for _, total in used))
    loads: dict[tuple[int, int], Fraction] = {}
    for some, total in used:
        for ends, units in some.items():
            loads[ends] = loads.get(ends, Fraction(0)) + units * (whole // total)
    time = max(units / (whole * capacities.arcs[ends]) for ends, units in loads.items()) / capacities.unit
    return Plan(topology, schedule, least, time, shares, route)


def _no_route(source: int, target: int, chunk: int, reduces: bool) -> Path:
    raise TopologyError("a single device sends nothing")
