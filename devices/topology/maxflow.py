"""Maximal flows in whole numbers, by Dinic's method."""

from __future__ import annotations

from typing import final


@final
class FlowGraph:
    """A graph whose arcs have whole capacities, in which flows are found one after the other.

    A flow uses capacity up until `reset`. Arcs are stored in pairs, one the other's reverse, at numbers 2i and 2i + 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.capacities: list[int] = []
        self._targets: list[int] = []
        self._arcs: list[list[int]] = [[] for _ in range(size)]
        self._fresh: list[int] = []

    def add(self, source: int, target: int, capacity: int, back: int = 0) -> int:
        """Add an arc, with `back` in the other direction, and return its number."""
        number = len(self._targets)
        self._targets += (target, source)
        self.capacities += (capacity, back)
        self._arcs[source].append(number)
        self._arcs[target].append(number + 1)
        return number

    def keep(self) -> None:
        """Make the capacities as they are now those that `reset` returns to."""
        self._fresh = self.capacities[:]

    def reset(self) -> None:
        """Take all flows away."""
        self.capacities[:] = self._fresh

    def flow(self, source: int, sink: int, limit: int | None = None) -> int:
        """Push as much as can be from source to sink, `limit` at most, and return how much it was."""
        total = 0
        while limit is None or total < limit:
            levels = self._levels(source, sink)
            if levels[source] < 0:
                break
            total += self._block(source, sink, levels, None if limit is None else limit - total)
        return total

    def reaching(self, sink: int) -> list[bool]:
        """Return for each node whether there is still capacity on a path to the sink."""
        seen = [False] * self.size
        seen[sink] = True
        stack = [sink]
        arcs, targets, capacities = self._arcs, self._targets, self.capacities
        while stack:
            for arc in arcs[stack.pop()]:
                other = targets[arc]
                if not seen[other] and capacities[arc ^ 1]:
                    seen[other] = True
                    stack.append(other)
        return seen

    def reached(self, source: int) -> list[bool]:
        """Return for each node whether there is still capacity on a path from the source."""
        seen = [False] * self.size
        seen[source] = True
        stack = [source]
        arcs, targets, capacities = self._arcs, self._targets, self.capacities
        while stack:
            for arc in arcs[stack.pop()]:
                other = targets[arc]
                if not seen[other] and capacities[arc]:
                    seen[other] = True
                    stack.append(other)
        return seen

    def _levels(self, source: int, sink: int) -> list[int]:
        """Return how many arcs each node is from the sink, -1 where that is more than the source or no way."""
        levels = [-1] * self.size
        levels[sink] = 0
        frontier, level = [sink], 0
        arcs, targets, capacities = self._arcs, self._targets, self.capacities
        while frontier and levels[source] < 0:
            level += 1
            after = []
            for node in frontier:
                for arc in arcs[node]:
                    other = targets[arc]
                    if levels[other] < 0 and capacities[arc ^ 1]:
                        levels[other] = level
                        after.append(other)
            frontier = after
        return levels

    def _block(self, source: int, sink: int, levels: list[int], limit: int | None) -> int:
        """Push flow along shortest paths until each has a full arc."""
        arcs, targets, capacities = self._arcs, self._targets, self.capacities
        pointers = [0] * self.size
        path: list[int] = []
        total, node = 0, source
        while True:
            if node == sink:
                pushed = min([capacities[arc] for arc in path])
                if limit is not None and total + pushed > limit:
                    pushed = limit - total
                total += pushed
                first_full = 0
                for place in range(len(path) - 1, -1, -1):
                    arc = path[place]
                    capacities[arc] -= pushed
                    capacities[arc ^ 1] += pushed
                    if not capacities[arc]:
                        first_full = place
                if total == limit:
                    return total
                node = targets[path[first_full] ^ 1]
                del path[first_full:]
                continue
            own, place, wanted = arcs[node], pointers[node], levels[node] - 1
            while place < len(own):
                arc = own[place]
                if capacities[arc] and levels[targets[arc]] == wanted:
                    break
                place += 1
            pointers[node] = place
            if place < len(own):
                path.append(own[place])
                node = targets[own[place]]
            elif not path:
                return total
            else:
                levels[node] = -1
                node = targets[path.pop() ^ 1]
