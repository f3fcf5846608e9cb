"""Which device has which place of a mesh, so that what its axes say to each other takes least time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final, overload

from devices.errors import ArgumentError, MeshError
from devices.topology.clusters import Cluster
from devices.topology.graph import Topology
from devices.topology.nesting import Nesting, nest
from devices.topology.paths import Paths
from devices.topology.shapes import digits

Number = int | float

EXACT = 7
"""Of so many devices all orders are tried."""

_TRIED = 100_000
"""The devices of all layouts together that are tried, at the most, before the best is improved by exchanges."""

_EQUAL = 1 + 1e-9

_EXCHANGED = 32
"""Layouts of more devices are not improved by exchanges, which take too long."""


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Where the places of a mesh are.

    Args:
        axes: the length of each axis, the last varying fastest.
        order: for each place of the mesh, in that order, the rank of the device that has it.
        seconds: what the traffic of all axes takes, one axis after the other.
        by_axis: what each axis takes of that.
        bound: seconds that no order goes below.
        proven: whether no order is faster, since all were tried or since it takes no longer than `bound`.
    """

    axes: Mapping[str, int] = field(hash=False)
    order: tuple[int, ...]
    seconds: float
    by_axis: Mapping[str, float] = field(hash=False)
    bound: float
    proven: bool


@overload
def layout(topology: Topology, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None) -> Layout: ...
@overload
def layout(topology: Cluster, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None) -> Nesting: ...
def layout(
    topology: Topology | Cluster, axes: Mapping[str, int], traffic: Mapping[str, Number] | None = None
) -> Layout | Nesting:
    """Lay a mesh on a topology so that the predicted time of its traffic is least.

    Along each axis the groups do a ring all-reduce, all at once, both ways round; bytes go by the shortest paths, in
    equal parts where there are several. An axis takes as long as the link that most of them meet.

    Args:
        topology: it is connected, and the bandwidths of its links are known. On a cluster the mesh is one of ranks, of
            which a chip may have several, and `nest` says how far apart the neighbours of each axis are.
        axes: the length of each axis, the last varying fastest; they multiply to the number of devices.
        traffic: the bytes of each axis: how much its all-reduces add up to, for each device. Without it the last axis
            has the most, each before it a tenth of the next, as in `world.mesh({"dp": ..., "tp": ...})`.

    Raises:
        MeshError: the axes do not fit the devices.
        TopologyError: the topology is not connected, or a bandwidth is not known.

    >>> from devices.topology import torus
    >>> layout(torus((4, 4), 50e9), {"dp": 4, "tp": 4}).order[:4]
    (0, 1, 2, 3)
    """
    lengths = dict(axes)
    if isinstance(topology, Cluster):
        return nest(topology.target, lengths, dict(zip(lengths, _weights(lengths, traffic), strict=True)))
    sizes = _sizes(lengths, len(topology.devices))
    weights = _weights(lengths, traffic)
    paths = Paths(topology)
    cost = _Cost(paths, sizes, weights)
    count = len(topology.devices)
    if count <= EXACT:
        # In a ring or a torus all devices are alike, but not in every topology: none is left where it is.
        best = min(itertools.permutations(range(count)), key=cost.of)
    else:
        best = min(itertools.islice(_structured(topology, sizes), max(8, _TRIED // count)), key=cost.of)
        if count <= _EXCHANGED and cost.of(best) > cost.bound() * _EQUAL:
            best = _exchanged(best, cost)
    by_axis = dict(zip(lengths, cost.by_axis(best), strict=True))
    seconds, bound = sum(by_axis.values()), cost.bound()
    proven = count <= EXACT or seconds <= bound * _EQUAL
    return Layout(lengths, tuple(best), seconds, by_axis, min(bound, seconds), proven)


def layout_seconds(
    topology: Topology, axes: Mapping[str, int], order: Sequence[int], traffic: Mapping[str, Number] | None = None
) -> dict[str, float]:
    """Return what the traffic of each axis takes when the devices have the places of a mesh in this order.

    Raises:
        MeshError: the axes or the order do not fit the devices.
    """
    lengths = dict(axes)
    sizes = _sizes(lengths, len(topology.devices))
    if sorted(order) != list(range(len(topology.devices))):
        raise MeshError(f"an order names each of {len(topology.devices)} devices once, got {tuple(order)!r}")
    found = _Cost(Paths(topology), sizes, _weights(lengths, traffic)).by_axis(tuple(order))
    return dict(zip(lengths, found, strict=True))


class _Cost:
    """What an order takes.

    Args:
        paths: how bytes go.
        sizes: the length of each axis.
        weights: the bytes of each axis.
    """

    def __init__(self, paths: Paths, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self._paths = paths
        # Of each axis the pairs of places, the bytes from each to each other, and how many steps they take.
        self._axes: list[tuple[list[tuple[int, int]], float, int]] = []
        for axis, (length, weight) in enumerate(zip(sizes, weights, strict=True)):
            if length == 1 or not weight:
                self._axes.append(([], 0.0, 0))
                continue
            # Each rank passes 2 (n - 1) / n of the bytes on, half of them each way round.
            share = 2 * (length - 1) / length * weight / 2
            self._axes.append((list(_neighbours(sizes, axis)), share, 2 * (length - 1)))

    def of(self, order: Sequence[int]) -> float:
        """Return the seconds of all axes."""
        return sum(self.by_axis(order))

    def by_axis(self, order: Sequence[int]) -> list[float]:
        """Return the seconds of each axis."""
        found = []
        for pairs, share, steps in self._axes:
            load: dict[int, float] = {}
            farthest = 0.0
            for one, other in pairs:
                for source, target in ((order[one], order[other]), (order[other], order[one])):
                    latency, parts = self._paths.between(source, target)
                    farthest = max(farthest, latency)
                    for link, part in parts:
                        load[link] = load.get(link, 0.0) + part
            busiest = max((load[link] * self._paths.seconds_per_byte[link] for link in load), default=0.0)
            found.append(busiest * share + steps * farthest)
        return found

    def bound(self) -> float:
        """Return seconds that no order goes below.

        All that a device says leaves it by its links. And either two neighbours of a ring have a link of their own,
        which carries all that one says to the other; or all that is said crosses two links, and on the average those
        carry their share of it.
        """
        paths = self._paths
        found = 0.0
        for pairs, share, steps in self._axes:
            if not pairs:
                continue
            out = 2 * share / paths.least_leaving
            # The two of a ring of two are neighbours both ways round.
            alone = share * (2 if steps == 2 else 1) / paths.fastest_direct if paths.fastest_direct else math.inf
            spread = len(pairs) * 2 * 2 * share / paths.capacity
            found += max(out, min(alone, spread)) + steps * paths.least_latency
        return found


def _neighbours(sizes: Sequence[int], axis: int) -> Iterator[tuple[int, int]]:
    """Yield the places of a mesh that are next to each other in the rings along an axis."""
    length, stride = sizes[axis], math.prod(sizes[axis + 1 :])
    for place in range(math.prod(sizes)):
        at = place // stride % length
        yield place, place + stride * ((at + 1) % length - at)


def _structured(topology: Topology, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield orders in which each axis of the mesh has whole factors of the topology's own axes.

    Both multiply to the number of devices, so that their prime factors are the same, and any mesh can be laid.
    """
    count = math.prod(sizes)
    yield tuple(range(count))
    radices, of_axes, ranks = digits(topology)
    seen = set()
    everything = tuple(range(len(radices)))
    for in_order in (True, False):
        for given in _assignments(radices, everything, sizes, in_order):
            order = _order(radices, of_axes, ranks, given)
            if order not in seen:
                seen.add(order)
                yield order


def _assignments(
    radices: Sequence[int], free: tuple[int, ...], sizes: Sequence[int], in_order: bool
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield for each axis of the mesh the digits of the topology that it has."""
    if not sizes:
        yield ()
        return
    *others, last = sizes
    for chosen in _chosen(radices, free, last, in_order):
        left = tuple(place for place in free if place not in chosen)
        for rest in _assignments(radices, left, others, in_order):
            yield (*rest, chosen)


def _chosen(radices: Sequence[int], free: tuple[int, ...], length: int, in_order: bool) -> Iterator[tuple[int, ...]]:
    """Yield the free digits whose radices multiply to `length`, the last first; ascending, or in every order."""
    if length == 1:
        yield ()
        return
    for place in reversed(free):
        if length % radices[place] == 0:
            left = tuple(each for each in free if (each < place if in_order else each != place))
            for rest in _chosen(radices, left, length // radices[place], in_order):
                yield (*rest, place)


def _order(
    radices: Sequence[int], of_axes: Sequence[int], ranks: Sequence[int], given: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Return the order in which each axis of the mesh runs to and fro through what it has of the topology's axes."""
    walks = [_walk(radices, of_axes, places) for places in given]
    return tuple(ranks[sum(steps)] for steps in itertools.product(*walks))


def _walk(radices: Sequence[int], of_axes: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return what the steps of one axis add to a place; digits that follow each other on an axis count as one."""
    strides = [math.prod(radices[place + 1 :]) for place in range(len(radices))]
    runs: list[tuple[int, int]] = []
    before = None
    for place in places:
        if before is not None and place == before + 1 and of_axes[place] == of_axes[before]:
            runs[-1] = runs[-1][0] * radices[place], strides[place]
        else:
            runs.append((radices[place], strides[place]))
        before = place
    steps = _to_and_fro([length for length, _ in runs])
    return [sum(at * stride for at, (_, stride) in zip(step, runs, strict=True)) for step in steps]


def _to_and_fro(radices: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all values of some digits, so that from each to the next one digit changes, by one.

    >>> _to_and_fro([2, 3])
    [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    """
    found: list[tuple[int, ...]] = [()]
    for radix in reversed(radices):
        found = [(digit, *rest) for digit in range(radix) for rest in (found if digit % 2 == 0 else reversed(found))]
    return found


def _exchanged(order: Sequence[int], cost: _Cost) -> tuple[int, ...]:
    """Return the order after exchanges of two devices, as long as one of them makes it faster."""
    now, least = list(order), cost.of(order)
    for _ in range(2):
        before = least
        for one, other in itertools.combinations(range(len(now)), 2):
            now[one], now[other] = now[other], now[one]
            found = cost.of(now)
            if found < least * (1 - 1e-9):
                least = found
            else:
                now[one], now[other] = now[other], now[one]
        if least >= before * (1 - 1e-9):
            break
    return tuple(now)


def _sizes(axes: Mapping[str, int], count: int) -> tuple[int, ...]:
    if not axes:
        raise MeshError("a mesh needs at least one axis, for instance {'dp': 8}")
    for name, length in axes.items():
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise MeshError(f"axis {name!r} must be a whole number of at least 1, got {length!r}")
    asked = ", ".join(f"{name}={length}" for name, length in axes.items())
    if math.prod(axes.values()) != count:
        raise MeshError(f"the axes {asked} need {math.prod(axes.values())} devices, and the topology has {count}")
    return tuple(axes.values())


def _weights(axes: Mapping[str, int], traffic: Mapping[str, Number] | None) -> list[float]:
    if traffic is None:
        return [10.0 ** -(len(axes) - 1 - place) * 1e9 for place in range(len(axes))]
    for name, value in traffic.items():
        if name not in axes:
            raise MeshError(f"traffic is said of an axis {name!r}, and there are {', '.join(axes)}")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ArgumentError(f"the traffic of axis {name!r} is a number of bytes, got {value!r}")
    return [float(traffic.get(name, 0)) for name in axes]
