"""The shortest paths between devices, and what share of the bytes each link of them carries."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, final

from devices.topology.graph import Topology
from devices.topology.shapes import torus_shape


@final
@dataclass(frozen=True, slots=True)
class Way:
    """How bytes go from one device to another.

    Args:
        hops: how many links there are on the way.
        latency: seconds.
        parts: the links on the way, each with the share of the bytes that it carries.
        alone: seconds per byte of a message that meets no other. It is not cut, and each device on the way passes it on
            when it has all of it; switches pass it on as it comes.
    """

    hops: int
    latency: float
    parts: tuple[tuple[int, float], ...]
    alone: float


class _Distances(NamedTuple):
    """What is known of the ways to a node: looked for from it, as far as it was asked for.

    Args:
        hops: how many links away each other is.
        slowness: how long a byte is on the fastest such way.
        queue: those from which it goes on.
        nearer: the links that bytes go by from each, each with where it ends.
    """

    hops: dict[int, int]
    slowness: dict[int, int]
    queue: deque[int]
    nearer: dict[int, list[tuple[int, int]]]


class Paths:
    """The shortest paths of a topology, looked for when they are first asked for.

    They have the fewest links; of several those are taken on which a byte spends least time, and on a torus or a grid
    those that go along its first axis first.

    Args:
        topology: connected, its bandwidths known.
    """

    def __init__(self, topology: Topology) -> None:
        topology.require_connected()
        topology.require_bandwidths()
        shape = torus_shape(topology) or (len(topology.nodes),)
        self._strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        places = {node.name: place for place, node in enumerate(topology.nodes)}
        self._ends = [places[node.name] for node in topology.devices]
        self._is_device = [node.is_device for node in topology.nodes]
        self._leaving: list[list[tuple[int, int]]] = [[] for _ in topology.nodes]
        self._entering: list[list[tuple[int, int]]] = [[] for _ in topology.nodes]
        self.ends: list[tuple[int, int]] = []
        """The places of the nodes that each link goes from and to."""
        merged: dict[tuple[int, int], int] = {}
        bandwidths: list[float] = []
        latencies: list[float] = []
        for link in topology.links:
            ends = places[link.source], places[link.target]
            bandwidth = float(link.bandwidth or 0)
            # Links side by side carry together what goes from one node to the next.
            if ends in merged:
                bandwidths[merged[ends]] += bandwidth
                continue
            merged[ends] = len(bandwidths)
            self._leaving[ends[0]].append((len(bandwidths), ends[1]))
            self._entering[ends[1]].append((len(bandwidths), ends[0]))
            self.ends.append(ends)
            bandwidths.append(bandwidth)
            latencies.append(float(link.latency or 0))
        self.seconds_per_byte = [1 / bandwidth for bandwidth in bandwidths]
        self._latencies = latencies
        exact = [Fraction(bandwidth) for bandwidth in bandwidths]
        whole = math.lcm(*(rate.numerator for rate in exact))
        # Seconds per byte in a unit that makes all of them whole, so that sums that are equal are found to be.
        self._slowness = [int(whole / rate) for rate in exact]
        self.least_latency = min(latencies, default=0.0)
        self.least_leaving = min(
            (sum(bandwidths[link] for link, _ in self._leaving[end]) for end in self._ends), default=math.inf
        )
        """The bytes per second that leave the device that has the least."""
        self.least_port = min(
            (max((bandwidths[link] for link, _ in self._leaving[end]), default=0.0) for end in self._ends), default=0.0
        )
        """The bandwidth of the fastest link of the device whose fastest is the slowest."""
        self._along = [self._axis(one, other) for one, other in self.ends]
        self._distances: dict[int, _Distances] = {}
        self._found: dict[tuple[int, int], Way] = {}

    @property
    def links(self) -> int:
        """How many links there are, those side by side counted as one."""
        return len(self.seconds_per_byte)

    def between(self, source: int, target: int) -> Way:
        """Return how bytes go from one device to another."""
        key = source, target
        if key not in self._found:
            self._found[key] = self._look(self._ends[source], self._ends[target])
        return self._found[key]

    def _look(self, source: int, target: int) -> Way:
        distances = self._to(source, target)
        nearer_to = distances.nearer
        shares = {source: 1.0}
        # Of a message, at each node: what it has taken to the last device, and on the first link from there.
        taken = {source: (0.0, 0.0)}
        found: dict[int, float] = {}
        latency = 0.0
        for _ in range(distances.hops[source]):
            following: dict[int, float] = {}
            reached: dict[int, tuple[float, float]] = {}
            slowest = 0.0
            for node, share in shares.items():
                if node not in nearer_to:
                    nearer_to[node] = self._nearer(node, distances)
                nearer = nearer_to[node]
                before, since = taken[node]
                for link, end in nearer:
                    part = share / len(nearer)
                    found[link] = found.get(link, 0.0) + part
                    following[end] = following.get(end, 0.0) + part
                    slowest = max(slowest, self._latencies[link])
                    seconds = self.seconds_per_byte[link]
                    there = (before + max(since, seconds), 0.0) if self._is_device[end] else (before, since or seconds)
                    reached[end] = min(reached.get(end, there), there, key=sum)
            shares, taken = following, reached
            latency += slowest
        return Way(distances.hops[source], latency, tuple(found.items()), taken[target][0])

    def _nearer(self, node: int, distances: _Distances) -> list[tuple[int, int]]:
        """Return the links that bytes go by from a node, each with where it ends."""
        hops, slowness = distances.hops, distances.slowness
        nearer = [
            (link, end)
            for link, end in self._leaving[node]
            if hops.get(end) == hops[node] - 1 and slowness[end] + self._slowness[link] == slowness[node]
        ]
        first = min(self._along[link] for link, _ in nearer)
        return [(link, end) for link, end in nearer if self._along[link] == first]

    def _axis(self, one: int, other: int) -> int:
        """Return the axis of a torus along which two neighbours lie; 0 on what is none."""
        for axis, stride in enumerate(self._strides):
            if abs(one - other) >= stride:
                return axis
        return 0

    def _to(self, source: int, target: int) -> _Distances:
        """Return how far from a node others are, those at least that are on the shortest ways from another."""
        found = self._distances.setdefault(target, _Distances({target: 0}, {target: 0}, deque([target]), {}))
        hops, slowness, queue = found.hops, found.slowness, found.queue
        while source not in hops or (queue and hops[queue[0]] < hops[source]):
            node = queue.popleft()
            for link, before in self._entering[node]:
                through = slowness[node] + self._slowness[link]
                if before not in hops:
                    hops[before] = hops[node] + 1
                    slowness[before] = through
                    queue.append(before)
                elif hops[before] == hops[node] + 1:
                    slowness[before] = min(slowness[before], through)
        return found
