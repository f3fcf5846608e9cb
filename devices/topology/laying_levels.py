"""A search for a faster order that first says how far apart the neighbours of each axis are, at the most.

What an axis takes for two neighbours alone has few values, its levels. Orders of all levels of each axis are looked
through together; where that takes too long, those of the lower levels of an axis apart from those of its higher ones;
and where that takes too long as well, all that are left together, as long as it may take.
For each place it is known which devices it may have: those near enough to what its neighbours may have.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from devices.topology.laying_moves import turned
from devices.topology.rings import Axis, Cost, Floats, Mask, axes_of
from devices.topology.symmetry import Numbers

FIRST = 20
"""So many steps are taken for all levels before the lower ones are looked through apart from the higher ones."""

MORE = 4
"""So many times as many steps are taken for each of the two."""

ALONE = 100
"""So many steps are taken to know what 64 devices take at least for one axis alone."""

PAIRS = 100
"""So many ways of turning a mesh round while devices are exchanged are looked at, at the most."""


class _Box(NamedTuple):
    """Orders of which each axis takes, for its farthest neighbours, one of some levels.

    Args:
        seconds: what they take at least.
        lowest: for each axis the first of its levels.
        highest: the last.
    """

    seconds: float
    lowest: tuple[int, ...]
    highest: tuple[int, ...]


class _Said(NamedTuple):
    """What the devices that are placed say along an axis: as in `Loads`, and what the axis takes at least."""

    loads: Floats
    alone: float
    latency: float
    taken: float


class _OutOfStepsError(Exception):
    """The search has taken all the steps that it may."""


def are_as_near(cost: Cost) -> bool:
    """Return whether each two devices are as near to each other as any others, as far as an axis waits for it."""
    assert cost.loads is not None
    others = ~np.eye(cost.count, dtype=bool)
    return all(
        float(each[others].max()) <= float(each[others].min()) * (1 + 1e-9)
        for each in (np.maximum(cost.loads.links.max(2), cost.loads.alone), cost.loads.latency)
    )


def raised(cost: Cost, floors: Sequence[float], order: Sequence[int], moves: Numbers) -> list[float]:
    """Return what each axis takes at least if the others take nothing, the devices being cut up into its rings.

    Args:
        cost: what an order takes; it has a table of loads.
        floors: what is known of that.
        order: one that is known.
        moves: exchanges of devices that change nothing.
    """
    found = list(floors)
    for place, (axis, seconds) in enumerate(zip(cost.axes, cost.by_axis(order), strict=True)):
        if not axis.pairs or axis.length == cost.count or seconds <= found[place] * (1 + 1e-9):
            continue
        # The rings are alike, so that each device that has none yet may be the first of the next.
        weight = axis.share * axis.length / (axis.length - 1)
        alone = Cost(cost.paths, cost.count, axes_of((cost.count // axis.length, axis.length), (0, weight)))
        alone.loads = cost.loads
        search = Levels(alone, [0.0, found[place]], moves, axis.length)
        steps = ALONE * 64 // max(16, cost.count)
        found[place] = max(found[place], search.improve(range(cost.count), steps, seconds=seconds)[1])
    return found


@final
class Levels:
    """A search for an order that is faster than one that is known.

    The mesh looks the same from all its places, so that the first device has the first of them.

    Args:
        cost: what an order takes; it has a table of loads.
        floors: what each axis takes at least.
        moves: exchanges of devices that change nothing, for each the device that comes to each one's place.
        block: places that follow each other and have no neighbours but among themselves, one block like the other;
            0 where there are none.
    """

    def __init__(self, cost: Cost, floors: Sequence[float], moves: Numbers, block: int = 0) -> None:
        assert cost.loads is not None
        self._cost, self._loads, self._count = cost, cost.loads, cost.count
        self._least = list(floors)
        self._block = block
        self._moved, self._moves = _together([] if block else list(turned([axis.length for axis in cost.axes])), moves)
        self._alone = np.maximum(self._loads.links.max(2), self._loads.alone)
        self._axes = [axis for axis in cost.axes if axis.pairs]
        limits = [self._limits(axis, floor) for axis, floor in zip(cost.axes, floors, strict=True) if axis.pairs]
        self._levels = [levels for levels, _ in limits]
        self._nearer = [near for _, near in limits]
        self._ends = [np.array(axis.pairs, dtype=np.int64).T for axis in self._axes]
        # For each place the next and the one before along each axis.
        self._after = [np.empty(self._count, dtype=np.int64) for _ in self._axes]
        self._before = [np.empty(self._count, dtype=np.int64) for _ in self._axes]
        for (ones, others), after, before in zip(self._ends, self._after, self._before, strict=True):
            after[ones], before[others] = others, ones
        # Turned round, an axis takes as long; so of the first place's neighbours the next may have the lesser device.
        # Where devices can be exchanged, that is done instead: which of the next ones is the lesser then is not known.
        self._turned = [
            (int(after[0]), int(ahead[0]))
            for axis, after, ahead in zip(self._axes, self._after, self._before, strict=True)
            if axis.length > 2 and not len(moves)
        ]
        self._order: tuple[int, ...] = ()
        self._seconds = self._limit = math.inf
        self._left = 0
        self._floors: list[float] = []
        self._near: list[Floats] = []

    def _limits(self, axis: Axis, floor: float) -> tuple[list[float], list[Floats]]:
        """Return the levels of an axis, and for each which devices may be neighbours."""
        alone = self._alone * (axis.flows * axis.share)
        pairs = np.maximum(alone + axis.steps * self._loads.latency, floor)
        np.fill_diagonal(pairs, math.inf)
        levels: list[float] = []
        for seconds in np.unique(pairs[np.isfinite(pairs)]).tolist():
            if not levels or seconds > levels[-1] * (1 + 1e-9):
                levels.append(seconds)
        return levels, [(pairs <= level * (1 + 1e-9)).astype(np.float32) for level in levels]

    def improve(
        self, order: Sequence[int], steps: int, together: int = 0, *, seconds: float | None = None
    ) -> tuple[tuple[int, ...], float]:
        """Return the fastest order that is found, and seconds that none goes below.

        Args:
            order: one that is known.
            steps: how many may be taken for levels apart from each other.
            together: how many more for those that are left, all together.
            seconds: what it takes; None for what is counted.
        """
        self._order = tuple(order)
        self._seconds = self._cost.of(order) if seconds is None else seconds
        highest = tuple(len(levels) - 1 for levels in self._levels)
        whole = _Box(0.0, (0,) * len(highest), highest)
        apart, self._left = self._apart(whole, steps)
        open_ = [box for each in apart if (box := self._shrunk(each)) is not None]
        bound = min([box.seconds for box in open_], default=math.inf)
        if open_:
            self._left += together
            try:
                while (box := self._shrunk(whole)) is not None and self._faster(box):
                    continue
                bound = math.inf
            except _OutOfStepsError:
                pass
        return self._order, min(bound, self._seconds)

    def _apart(self, box: _Box, steps: int) -> tuple[list[_Box], int]:
        """Look through the levels of a box, those apart for which it takes too long; return what is left.

        Args:
            box: all of them.
            steps: how many may be taken.

        Returns:
            The boxes that were not looked through, and the steps that were not taken.
        """
        open_ = [(0.0, 0, FIRST, box)]
        number = 0
        while open_ and steps > 0:
            _, _, allowed, wide = heapq.heappop(open_)
            now = self._shrunk(wide)
            if now is None:
                continue
            self._left = least = min(allowed, steps)
            try:
                parts = [now] if self._faster(now) else []
            except _OutOfStepsError:
                self._left = 0
                parts = self._parts(now)
                allowed *= MORE
            steps -= least - self._left
            for part in parts:
                number += 1
                heapq.heappush(open_, (part.seconds, number, allowed, part))
        return [wide for *_, wide in open_], steps

    def _shrunk(self, box: _Box) -> _Box | None:
        """Return the box without the levels that are no faster than what is known, None if nothing is left."""
        least = [levels[at] for levels, at in zip(self._levels, box.lowest, strict=True)]
        total = math.fsum(least)
        highest = []
        for levels, seconds, low, high in zip(self._levels, least, box.lowest, box.highest, strict=True):
            room = self._seconds * (1 - 1e-9) - (total - seconds)
            last = min(high, bisect.bisect_left(levels, room) - 1)
            if last < low:
                return None
            highest.append(last)
        return _Box(total, box.lowest, tuple(highest))

    def _parts(self, box: _Box) -> list[_Box]:
        """Return the lower levels of the axis that has the widest, and its others."""
        wide = [
            levels[high] - levels[low] for levels, low, high in zip(self._levels, box.lowest, box.highest, strict=True)
        ]
        axis = max(range(len(wide)), key=wide.__getitem__)
        if not wide[axis]:
            return [box]
        levels, low, high = self._levels[axis], box.lowest[axis], box.highest[axis]
        last = bisect.bisect_right(levels, (levels[low] + levels[high]) / 2) - 1
        lowest, highest = list(box.lowest), list(box.highest)
        lowest[axis], highest[axis] = last + 1, last
        more = levels[last + 1] - levels[low]
        return [
            _Box(box.seconds, box.lowest, tuple(highest)),
            _Box(box.seconds + more, tuple(lowest), box.highest),
        ]

    def _faster(self, box: _Box) -> bool:
        """Find an order of the box that is faster; return whether there is one."""
        self._floors = [levels[low] for levels, low in zip(self._levels, box.lowest, strict=True)]
        self._near = [near[high] for near, high in zip(self._nearer, box.highest, strict=True)]
        self._limit = self._seconds * (1 - 1e-9)
        can = np.ones((self._count, self._count), dtype=bool)
        can[0, 1:] = False
        nothing = [_Said(np.zeros(1), 0.0, 0.0, floor) for floor in self._floors]
        return all(map(_has_room, self._near, self._axes)) and self._fill(can, self._near, nothing)

    def _fill(self, can: Mask, near: Sequence[Floats], before: Sequence[_Said]) -> bool:
        """Place devices one after the other.

        Args:
            can: which devices each place may have; it is changed.
            near: for each axis which devices may be neighbours.
            before: what was said along each when that was known.
        """
        self._left -= 1
        if self._left < 0:
            raise _OutOfStepsError
        if not self._narrow(can, near):
            return False
        rows, columns = can.sum(1), can.sum(0)
        done, device = rows == 1, can.argmax(1)
        said = self._said(done, device)
        if math.fsum(each.taken for each in said) >= self._limit:
            return False
        if done.all():
            order = tuple(device.tolist())
            seconds = math.fsum(map(max, self._cost.by_axis(order), self._least))
            if seconds < self._limit:
                self._order, self._seconds = order, seconds
                return True
            return False
        if any(one.taken > other.taken or one.latency > other.latency for one, other in zip(said, before, strict=True)):
            nearer = self._nearer_than(near, said)
            if nearer is None:
                return False
            near = nearer
        for place, chosen in self._choices(can, done, device, said, rows, columns):
            then = can.copy()
            then[place] = False
            then[:, chosen] = False
            then[place, chosen] = True
            if self._fill(then, near, said):
                return True
            can[place, chosen] = False
        return False

    def _nearer_than(self, near: Sequence[Floats], said: Sequence[_Said]) -> list[Floats] | None:
        """Return which devices may still be neighbours along each axis, None if there are too few for its rings."""
        total = math.fsum(each.taken for each in said)
        found = []
        for axis, mask, now in zip(self._axes, near, said, strict=True):
            busiest = np.maximum(self._alone * axis.flows, now.alone)
            taken = busiest * axis.share + axis.steps * np.maximum(self._loads.latency, now.latency)
            nearer = mask * (taken < self._limit - (total - now.taken))
            if not np.array_equal(nearer, mask):
                mask = nearer
                if not _has_room(mask, axis):
                    return None
            found.append(mask)
        return found

    def _narrow(self, can: Mask, nearest: Sequence[Floats]) -> bool:
        """Take out what places cannot have; return whether each has something left, and each device a place."""
        ones = np.ones(self._count, dtype=np.float32)
        before = np.count_nonzero(can)
        while True:
            for one, other in self._turned:
                can[one, self._count - 1 - int(can[other, ::-1].argmax()) :] = False
                can[other, : int(can[one].argmax()) + 1] = False
            for axis, near, after, ahead in zip(self._axes, nearest, self._after, self._before, strict=True):
                reached = can.astype(np.float32) @ near > 0
                can &= reached[after]
                if axis.length > 2:
                    can &= reached[ahead]
                    # Its two neighbours are two devices.
                    can &= (can[after] | can[ahead]).astype(np.float32) @ near > 1
            number = can.astype(np.float32)
            rows, columns = number @ ones, ones @ number
            if not (rows.all() and columns.all()):
                return False
            done, lone = rows == 1, columns == 1
            placed, wanted = done.astype(np.float32) @ number, number @ lone.astype(np.float32)
            if placed.max() > 1 or wanted.max() > 1:
                return False
            # A device that has its place has no other, and one that has one place left has that.
            can &= done[:, None] | (placed == 0)
            can &= (wanted == 0)[:, None] | lone
            now = np.count_nonzero(can)
            if now == before:
                return True
            before = now

    def _said(self, done: Mask, device: Numbers) -> list[_Said]:
        """Return what the devices that are placed say along each axis."""
        found = []
        for axis, (ones, others), floor in zip(self._axes, self._ends, self._floors, strict=True):
            both = done[ones] & done[others]
            one, other = device[ones[both]], device[others[both]]
            loads = self._loads.links[one, other].sum(0)
            alone = float(self._loads.alone[one, other].max(initial=0)) * axis.flows
            latency = float(self._loads.latency[one, other].max(initial=0))
            taken = max(float(loads.max()), alone) * axis.share + axis.steps * latency
            found.append(_Said(loads, alone, latency, max(taken, floor)))
        return found

    def _choices(
        self, can: Mask, done: Mask, device: Numbers, said: Sequence[_Said], rows: Numbers, columns: Numbers
    ) -> list[tuple[int, int]]:
        """Return places and devices for them, of which one is right if any is, the most promising first."""
        most = self._count + 1
        rows = np.where(done, most, rows)
        open_ = np.where(columns == 1, most, columns)
        if self._block:
            blocks = done.reshape(-1, self._block)
            begun = blocks.any(1)
            if not (begun & ~blocks.all(1)).any():
                return [(int(begun.argmin()) * self._block, int(open_.argmin()))]
            rows[np.repeat(~begun, self._block)] = most
        elif open_.min() < rows.min():
            column = int(open_.argmin())
            firsts = self._firsts(can, done, device, column, is_device=True)
            return [(place, column) for place in np.flatnonzero(can[:, column]).tolist() if firsts[place] == place]
        place = int(rows.argmin())
        devices = np.flatnonzero(can[place])
        totals = np.zeros(len(devices))
        for axis, now, after, before in zip(self._axes, said, self._after, self._before, strict=True):
            beside = [device[at] for at in (after[place], before[place]) if done[at]]
            if not beside:
                totals += now.taken
                continue
            pairs = np.ix_(devices, beside)
            slow = np.maximum(self._loads.alone[pairs].max(1) * axis.flows, now.alone)
            busiest = np.maximum((self._loads.links[pairs].sum(1) + now.loads).max(1), slow)
            far = np.maximum(self._loads.latency[pairs].max(1), now.latency)
            totals += np.maximum(busiest * axis.share + far * axis.steps, now.taken)
        can[place, devices[totals >= self._limit]] = False
        first = self._firsts(can, done, device, place)
        ranked = devices[np.lexsort((columns[devices], totals))].tolist()
        return [(place, at) for at in ranked if can[place, at] and first[at] == at]

    def _firsts(self, can: Mask, done: Mask, device: Numbers, fixed: int, *, is_device: bool = False) -> Numbers:
        """Return for each device the first that it can be exchanged for, with all that is known staying the same.

        Args:
            can: which devices each place may have.
            done: the places that have one.
            device: theirs.
            fixed: the place that devices are looked for.
            is_device: the other way round, places are looked for a device.
        """
        first = np.arange(self._count)
        fixing, moving = (self._moves, self._moved) if is_device else (self._moved, self._moves)
        usable = np.flatnonzero(fixing[:, fixed] == fixed)
        has = np.where(done, device, self._count)
        moved = np.append(self._moves[usable], np.full((len(usable), 1), self._count), axis=1)[:, has]
        usable = usable[(has[self._moved[usable]] == moved).all(1)]
        usable = np.array(
            [at for at in usable if np.array_equal(can[np.ix_(self._moved[at], self._moves[at])], can)], dtype=np.int64
        )
        while len(usable):
            least = np.minimum(first, first[moving[usable]].min(0))
            if np.array_equal(least, first):
                break
            first = least
        return first


def _together(turns: Sequence[Sequence[int]], moves: Numbers) -> tuple[Numbers, Numbers]:
    """Return what changes nothing: for each place the one that its device comes to, and what that is exchanged for.

    Args:
        turns: places of the mesh as axes are turned round.
        moves: exchanges of devices.
    """
    if not len(moves):
        return moves, moves
    every = np.arange(moves.shape[1])
    both = [(turn, move) for turn in (every, *turns) for move in (every, *moves)][1:]
    if len(both) > PAIRS:
        both = [(every, move) for move in moves]
    return np.array([turn for turn, _ in both]), np.array([move for _, move in both])


def _has_room(near: Floats, axis: Axis) -> bool:
    """Return whether all devices that neighbours of neighbours reach can be in rings of the axis."""
    reached = (near > 0) | np.eye(len(near), dtype=bool)
    while True:
        further = reached.astype(np.float32) @ reached > 0
        if np.array_equal(further, reached):
            return not (reached.sum(1) % axis.length).any()
        reached = further
