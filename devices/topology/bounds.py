"""The least time of a collective on a topology, exactly, with the cut that shows that nothing is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import final

from devices.errors import TopologyError, did_you_mean
from devices.topology.capacity import Capacities
from devices.topology.cuts import (
    best_shares,
    least_cut,
    sides_into,
    worst_for_gathering,
    worst_for_one,
)
from devices.topology.exchange_cuts import worst_for_exchange
from devices.topology.graph import Topology

VERBS = ("all_gather", "reduce_scatter", "broadcast", "reduce", "all_reduce", "all_to_all")
"""The verbs that have bounds."""

SPECULATIVE = ("announced", "assumed")
"""The statuses of figures that make an answer a speculative one."""


@final
@dataclass(frozen=True)
class Bound:
    """No schedule of a verb is faster than this, however cleverly it shares the links.

    A byte is one of the data: of what all ranks have after an all_gather or before a reduce_scatter, of the tensor that
    is broadcast or reduced, of what each rank gives to an all_to_all, its own part included. Latency is left out.

    Args:
        verb: which.
        topology: on what.
        seconds_per_byte: exactly.
        sides: the witness: sets of nodes, by name. For each byte of the data, `demand` bytes must leave them, all
            counted, and `capacity` bytes per second can.
        demand: bytes per byte of the data.
        capacity: bytes per second.
        root: the rank that broadcasts or that is reduced to.
    """

    verb: str
    topology: Topology = field(repr=False)
    seconds_per_byte: Fraction
    sides: tuple[tuple[str, ...], ...]
    demand: Fraction
    capacity: Fraction
    root: int | None = None

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth that no schedule exceeds, by the size of the data (`algbw` where NCCL's tests print it)."""
        return float("inf") if self.seconds_per_byte == 0 else float(1 / self.seconds_per_byte)

    @property
    def is_speculative(self) -> bool:
        """Whether it rests on a figure that is announced for what is not out yet, or assumed."""
        return any(link.status in SPECULATIVE for link in self.topology.links)

    def seconds(self, size: int) -> float:
        """Return the least time for so many bytes."""
        return float(self.seconds_per_byte * size)

    def check(self) -> Fraction:
        """Compute the seconds per byte from the witness alone: sums over the links that leave it, and counting.

        Raises:
            TopologyError: the witness does not show what the bound says.
        """
        demand = _demand(self.verb, self.topology, self.sides, self.root)
        capacity = capacity_leaving(self.topology, self.sides)
        found = demand / capacity if demand else Fraction(0)
        if (found, demand) != (self.seconds_per_byte, self.demand):
            raise TopologyError(f"the witness shows {found} seconds per byte, not {self.seconds_per_byte}")
        return found

    def __str__(self) -> str:
        several = len(self.sides) > 1
        what = f"{len(self.sides)} sets of nodes" if several else f"{sum(map(len, self.sides))} nodes"
        return (
            f"{self.verb}: at most {self.bytes_per_second:.6g} bytes/s: for each byte {self.demand} must leave {what}, "
            f"and {float(self.capacity):.6g} bytes/s can{' (speculative)' if self.is_speculative else ''}"
        )


def bound(topology: Topology, verb: str, root: int = 0) -> Bound:
    """Return the least time of a verb on a topology.

    It is exact for all_gather, reduce_scatter, broadcast and reduce, and for all_reduce as far as links are as fast one
    way as the other. An all_to_all may take longer than its worst cut.

    Args:
        topology: whose links have bandwidths.
        verb: one of `VERBS`.
        root: for broadcast and reduce.

    Raises:
        TopologyError: a bandwidth is not known, or no path leads from one device to another.

    >>> from devices.topology import machines
    >>> two_dgx = machines(2, 8, inside=300e9, across=25e9)
    >>> found = bound(two_dgx, "all_gather")
    >>> round(found.bytes_per_second / 1e9, 3), found.demand, float(found.capacity)
    (346.667, Fraction(15, 16), 325000000000.0)
    """
    if verb not in VERBS:
        raise TopologyError(f"no bound for {verb!r}{did_you_mean(str(verb), VERBS)}; known: {', '.join(VERBS)}")
    return bound_on(topology, Capacities.of(topology), verb, root)


def bound_on(topology: Topology, capacities: Capacities, verb: str, root: int) -> Bound:
    """Return the least time of a verb on a topology whose capacities are there already."""
    size = len(capacities.endpoints)
    has_root = verb in ("broadcast", "reduce")
    if has_root and not 0 <= root < size:
        raise TopologyError(f"root {root!r} is not among {size} devices")
    if size == 1:
        return Bound(verb, topology, Fraction(0), (), Fraction(0), Fraction(1), root if has_root else None)
    if verb in ("all_gather", "broadcast"):
        ways = [_entering(capacities, verb, root)]
    elif verb in ("reduce_scatter", "reduce"):
        ways = [_outside(capacities, _entering(capacities.reversed(), verb, root))]
    elif verb == "all_reduce":
        ways = _of_all_reduce(capacities, any(node.reduces for node in topology.nodes))
    else:
        ways = [[side] for side in worst_for_exchange(capacities)]
    return max(
        (_bound(topology, verb, sides, root if has_root else None) for sides in ways),
        key=lambda found: found.seconds_per_byte,
    )


def capacity_leaving(topology: Topology, sides: Sequence[Sequence[str]]) -> Fraction:
    """Return the bytes per second that can leave sets of nodes, all counted."""
    within: dict[str, set[int]] = {node.name: set() for node in topology.nodes}
    for number, side in enumerate(sides):
        for name in side:
            within[topology.node(name).name].add(number)
    rates: dict[int | float, int] = {}
    for link in topology.links:
        if link.bandwidth is not None and (times := len(within[link.source] - within[link.target])):
            rates[link.bandwidth] = rates.get(link.bandwidth, 0) + times
    return sum((Fraction(rate) * times for rate, times in rates.items()), Fraction(0))


Sides = list[list[int]]


def _entering(capacities: Capacities, verb: str, root: int) -> Sides:
    """Return the side that data leaves, of the cut that is worst for an all_gather or a broadcast."""
    if verb in ("broadcast", "reduce"):
        _, inside = worst_for_one(capacities, capacities.endpoints[root])
    else:
        _, inside = worst_for_gathering(capacities, dict.fromkeys(capacities.endpoints, 1))
    return [[node for node in range(capacities.size) if not inside[node]]]


def _outside(capacities: Capacities, sides: Sides) -> Sides:
    """Return the other sides: what enters a set when links are turned round leaves it as they are."""
    return [sorted(set(range(capacities.size)) - set(side)) for side in sides]


def _of_all_reduce(capacities: Capacities, may_reduce: bool) -> list[Sides]:
    """Return the cuts, or sets of devices, that may be worst for an all_reduce.

    Between k sets that hold all devices at least 2 (k - 1) messages carry each byte: k - 1 until some device has the
    sum, k - 1 until all have it. Where a switch can sum up, only that each byte leaves each set is sure.
    """
    if not may_reduce:
        entering = sides_into(capacities, best_shares(capacities, signed=True))
        if capacities.is_symmetric:
            return [entering]
    _, inside = least_cut(capacities)
    ways = [[[node for node in range(capacities.size) if not inside[node]]]]
    if may_reduce:
        return ways
    back = capacities.reversed()
    leaving = sides_into(back, best_shares(back, signed=True))
    return [*ways, _outside(capacities, entering), leaving]


def _demand(verb: str, topology: Topology, sides: Sequence[Sequence[str]], root: int | None) -> Fraction:
    """Return how many bytes must leave sets of nodes, all counted, for each byte of the data.

    Several sets are disjoint and hold each device, or they are what such sets leave out.
    """
    names = [node.name for node in topology.devices]
    devices = set(names)
    within = [devices.intersection(side) for side in sides]
    if not within or any(len(each) in (0, len(names)) for each in within):
        return Fraction(0)
    if len(within) > 1:
        times = Counter(name for each in within for name in each)
        is_whole = len(times) == len(names) and set(times.values()) in ({1}, {len(within) - 1})
        return Fraction(2 * (len(within) - 1) if verb == "all_reduce" and is_whole else 0)
    inside = len(within[0])
    if root is not None:
        return Fraction((names[root] in within[0]) == (verb == "broadcast"))
    outside = len(names) - inside
    bytes_leaving = {
        "all_gather": Fraction(inside, len(names)),
        "reduce_scatter": Fraction(outside, len(names)),
        "all_reduce": Fraction(1),
        "all_to_all": Fraction(inside * outside, len(names)),
    }
    return bytes_leaving[verb]


def _bound(topology: Topology, verb: str, sides: Sides, root: int | None) -> Bound:
    named = tuple(tuple(topology.nodes[node].name for node in side) for side in sides)
    demand = _demand(verb, topology, named, root)
    capacity = capacity_leaving(topology, named)
    return Bound(verb, topology, demand / capacity, named, demand, capacity, root)
