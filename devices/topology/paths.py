"""The shortest paths between devices, and what share of the bytes each link of them carries."""

from __future__ import annotations

import math
from collections import deque

from devices.topology.graph import Topology


class Paths:
    """The shortest paths of a topology, looked for when they are first asked for.

    Args:
        topology: connected, its bandwidths known.
    """

    def __init__(self, topology: Topology) -> None:
        topology.require_connected()
        topology.require_bandwidths()
        places = {node.name: place for place, node in enumerate(topology.nodes)}
        self._ends = [places[node.name] for node in topology.devices]
        self._is_device = [node.is_device for node in topology.nodes]
        self._leaving: list[list[tuple[int, int]]] = [[] for _ in topology.nodes]
        self._entering: list[list[tuple[int, int]]] = [[] for _ in topology.nodes]
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
            bandwidths.append(bandwidth)
            latencies.append(float(link.latency or 0))
        self.seconds_per_byte = [1 / bandwidth for bandwidth in bandwidths]
        self._latencies = latencies
        self.capacity = sum(bandwidths)
        """Bytes per second of all links together."""
        self.least_latency = min(latencies, default=0.0)
        self.least_leaving = min(
            (sum(bandwidths[link] for link, _ in self._leaving[end]) for end in self._ends), default=math.inf
        )
        """The bytes per second that leave the device that has the least."""
        direct = [bandwidths[link] for ends, link in merged.items() if all(self._is_device[end] for end in ends)]
        self.fastest_direct = max(direct, default=0.0)
        """The bandwidth of the fastest link that joins two devices; 0 where there is none."""
        self._distances: dict[int, list[int]] = {}
        self._found: dict[tuple[int, int], tuple[float, tuple[tuple[int, float], ...]]] = {}

    def between(self, source: int, target: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Return the latency from one device to another, and the links on the way with the share that each carries."""
        key = source, target
        if key not in self._found:
            self._found[key] = self._look(self._ends[source], self._ends[target])
        return self._found[key]

    def hops(self, source: int, target: int) -> int:
        """Return how many links a shortest path has."""
        return self._to(self._ends[target])[self._ends[source]]

    def _look(self, source: int, target: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        distance = self._to(target)
        shares = {source: 1.0}
        found: dict[int, float] = {}
        latency = 0.0
        for _ in range(distance[source]):
            following: dict[int, float] = {}
            slowest = 0.0
            for node, share in shares.items():
                nearer = [(link, end) for link, end in self._leaving[node] if distance[end] == distance[node] - 1]
                for link, end in nearer:
                    part = share / len(nearer)
                    found[link] = found.get(link, 0.0) + part
                    following[end] = following.get(end, 0.0) + part
                    slowest = max(slowest, self._latencies[link])
            shares = following
            latency += slowest
        return latency, tuple(found.items())

    def _to(self, target: int) -> list[int]:
        """Return how many links away from a node each other is."""
        if target not in self._distances:
            distance = [-1] * len(self._is_device)
            distance[target] = 0
            queue = deque([target])
            while queue:
                node = queue.popleft()
                for _, before in self._entering[node]:
                    if distance[before] < 0:
                        distance[before] = distance[node] + 1
                        queue.append(before)
            self._distances[target] = distance
        return self._distances[target]
