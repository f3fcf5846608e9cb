"""A graph of devices alone that carries all that one with switches does: each switch is cut out, link by link.

What enters a switch from one node and leaves it to another becomes a link between the two, which remembers its path. As
much of a pair is cut out at once as leaves every device able to hear from all (Bang-Jensen, Frank and Jackson show that
this never gets stuck where as much enters a switch as leaves it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from devices.topology.forest import Path
from devices.topology.maxflow import FlowGraph

Units = dict[tuple[int, int], int]


@final
class Unswitched:
    """The graph while its switches are cut out, and then.

    Args:
        size: how many nodes there are.
        units: what each arc can carry, in whole units.
        supplies: for each endpoint how many units it sends to all others.
    """

    def __init__(self, size: int, units: Mapping[tuple[int, int], int], supplies: Mapping[int, int]) -> None:
        self.size = size
        self.supplies = supplies
        self.total = sum(supplies.values())
        self.units: Units = dict(units)
        # What an arc stands for: paths, and how much of it is on each.
        self.paths: dict[tuple[int, int], dict[Path, int]] = {
            ends: {ends: units} for ends, units in self.units.items()
        }  # fmt: skip

    def cut_out(self, switch: int) -> None:
        """Replace a switch by links between its neighbours."""
        for shift in self._shifts(switch):
            if self._is_enough(shift):
                for (source, target), units in shift.items():
                    self._move(source, switch, target, units)
                break
        else:
            self._one_by_one(switch)
        for ends in [ends for ends in self.units if switch in ends]:
            del self.units[ends]
            del self.paths[ends]

    def _shifts(self, switch: int) -> Iterator[Units]:
        """Yield ways to join all that enters a switch to all that leaves it at once: one turned against the other."""
        entering = [(source, units) for (source, target), units in self.units.items() if target == switch]
        leaving = [(target, units) for (source, target), units in self.units.items() if source == switch]
        total = sum(units for _, units in entering)
        if total != sum(units for _, units in leaving) or not total:
            return
        neighbours = len(leaving)
        for offset in dict.fromkeys((total // 2, total // neighbours, total // 3, total // 2 + total // neighbours)):
            joined: Units = {}
            for (source, target), units in _overlaps(entering, leaving, offset, total):
                if source != target:
                    joined[source, target] = joined.get((source, target), 0) + units
            if sum(joined.values()) == total:
                yield {(source, target): units for (source, target), units in joined.items()} | {
                    (switch, switch): 0
                }  # fmt: skip

    def _is_enough(self, joined: Units) -> bool:
        [(switch, _)] = [ends for ends in joined if ends[0] == ends[1]]
        units = {ends: value for ends, value in self.units.items() if switch not in ends}
        for ends, value in joined.items():
            units[ends] = units.get(ends, 0) + value
        del joined[switch, switch]
        return self._missing(units) == 0

    def _one_by_one(self, switch: int) -> None:
        entering = {source: units for (source, target), units in self.units.items() if target == switch}
        leaving = {target: units for (source, target), units in self.units.items() if source == switch}
        for source in sorted(entering):
            # What comes back to where it is from is of no use, and comes last.
            targets = sorted(leaving, key=lambda node: (node == source, -leaving[node], (node - source) % self.size))
            for target in targets:
                most = min(entering[source], leaving[target])
                if not most:
                    continue
                units = dict(self.units)
                for ends in ((source, switch), (switch, target)):
                    units[ends] -= most
                if source != target:
                    units[source, target] = units.get((source, target), 0) + most
                # Every cut that this made too small lost exactly what was moved.
                moved = most - self._missing(units)
                if moved > 0:
                    self._move(source, switch, target, moved)
                    entering[source] -= moved
                    leaving[target] -= moved

    def _missing(self, units: Units) -> int:
        """Return how much any endpoint lacks to hear everything."""
        graph = FlowGraph(self.size + 1)
        for (source, target), capacity in units.items():
            back = units.get((target, source), 0)
            if (source < target or not back) and (capacity or back):
                graph.add(source, target, capacity, back)
        for node, supply in self.supplies.items():
            if supply:
                graph.add(self.size, node, supply)
        graph.keep()
        worst = 0
        for node in self.supplies:
            graph.reset()
            worst = max(worst, self.total - graph.flow(self.size, node, self.total))
        return worst

    def _move(self, source: int, switch: int, target: int, units: int) -> None:
        """Take units from the arcs into and out of a switch, and give them to one past it, with their paths."""
        first, second = self.paths[source, switch], self.paths[switch, target]
        ends = source, target
        for arc in ((source, switch), (switch, target)):
            self.units[arc] -= units
        if source == target:
            return
        self.units[ends] = self.units.get(ends, 0) + units
        paths = self.paths.setdefault(ends, {})
        while units:
            one, other = next(iter(first)), next(iter(second))
            taken = min(units, first[one], second[other])
            whole = (*one, *other[1:])
            paths[whole] = paths.get(whole, 0) + taken
            for path, some in ((one, first), (other, second)):
                some[path] -= taken
                if not some[path]:
                    del some[path]
            units -= taken


def _overlaps(
    entering: list[tuple[int, int]], leaving: list[tuple[int, int]], offset: int, total: int
) -> Iterator[tuple[tuple[int, int], int]]:
    """Lay both on a circle, the second turned by an offset, and yield where two lie on each other."""
    turned = []
    start = offset
    for target, units in leaving:
        end = start + units
        turned.append((start % total, min(units, total - start % total), target))
        if start % total + units > total:
            turned.append((0, start % total + units - total, target))
        start = end
    turned.sort()
    start = 0
    for source, units in entering:
        for begin, length, target in turned:
            both = min(start + units, begin + length) - max(start, begin)
            if both > 0:
                yield (source, target), both
        start += units
