"""How much of a batch, or of a tensor, each of several unequal chips is to have."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from devices.errors import ArgumentError

Number = int | float


@final
@dataclass(frozen=True, slots=True)
class Split:
    """Who has how much.

    Args:
        sizes: for each chip, how many items.
        seconds: how long the slowest needs.
        slowest: which one that is.
    """

    sizes: tuple[int, ...]
    seconds: float
    slowest: int


def shares(
    total: int,
    speeds: Sequence[Number],
    *,
    bytes_each: Number = 0,
    bandwidths: Sequence[Number] | None = None,
    memory_each: Number = 0,
    memories: Sequence[Number] | None = None,
    overheads: Sequence[Number] | None = None,
    multiple: int = 1,
) -> Split:
    """Split a number of items among unequal chips so that the slowest is done as soon as can be.

    No other split into whole items is faster. The items are samples of a batch, rows of a tensor, layers, or what the
    sizes of a verb (`sizes=`) count.

    Args:
        total: how many items there are.
        speeds: items per second, of each chip.
        bytes_each: what is moved for each item, after or before it is computed.
        bandwidths: bytes per second, of each chip.
        memory_each: bytes that an item takes in memory.
        memories: bytes that each chip has left for items.
        overheads: seconds that each chip needs whatever it gets.
        multiple: every size is a multiple of this.

    Raises:
        ArgumentError: the items do not fit, or an argument cannot be right.

    >>> shares(96, speeds=[989, 989, 667]).sizes
    (36, 36, 24)
    >>> shares(96, speeds=[989, 989, 667], memory_each=2e9, memories=[60e9, 80e9, 96e9]).sizes
    (30, 40, 26)
    """
    count = len(speeds)
    _whole("total", total, 0)
    _whole("multiple", multiple, 1)
    if not count:
        raise ArgumentError("a split needs at least one chip, got no speeds")
    if total % multiple:
        raise ArgumentError(f"{total} items cannot be split into multiples of {multiple}")
    rates = _each("speeds", speeds, count, positive=True)
    each = [1 / rate for rate in rates]
    if bytes_each:
        [moved] = _each("bytes_each", [bytes_each], 1)
        links = _each("bandwidths", _given("bandwidths", bandwidths, "bytes_each"), count, positive=True)
        each = [seconds + moved / link for seconds, link in zip(each, links, strict=True)]
    room = [total] * count
    if memory_each:
        [taken] = _each("memory_each", [memory_each], 1)
        rooms = _each("memories", _given("memories", memories, "memory_each"), count)
        room = [min(total, math.floor(memory / taken)) for memory in rooms]
    before = _each("overheads", overheads, count) if overheads is not None else [Fraction(0)] * count
    blocks = [limit // multiple for limit in room]
    if sum(blocks) * multiple < total:
        raise ArgumentError(
            f"{total} items do not fit: in multiples of {multiple} the chips have room for "
            f"{', '.join(str(limit * multiple) for limit in blocks)}, which is {sum(blocks) * multiple}"
        )
    sizes = _least(total // multiple, [seconds * multiple for seconds in each], before, blocks)
    found = [
        start + size * multiple * seconds if size else Fraction(0)
        for start, size, seconds in zip(before, sizes, each, strict=True)
    ]
    slowest = max(range(count), key=found.__getitem__)
    return Split(tuple(size * multiple for size in sizes), float(found[slowest]), slowest)


def _least(total: int, each: Sequence[Fraction], before: Sequence[Fraction], room: Sequence[int]) -> list[int]:
    """Return the sizes: what all can surely do, then one block after the other to who is done with it first."""
    # In the time that whole chips without limits would need, none of them gets more than it may have in the end.
    rate = sum(1 / seconds for seconds in each)
    at_least = max(Fraction(0), (total - len(each)) / rate)
    sizes = [
        min(limit, max(0, math.floor((at_least - start) / seconds)))
        for start, seconds, limit in zip(before, each, room, strict=True)
    ]
    queue = [
        (start + (size + 1) * seconds, place)
        for place, (start, size, seconds, limit) in enumerate(zip(before, sizes, each, room, strict=True))
        if size < limit
    ]
    heapq.heapify(queue)
    left = total - sum(sizes)
    while left:
        left -= _grow(queue, sizes, each, room, left)
    return sizes


def _grow(
    queue: list[tuple[Fraction, int]], sizes: list[int], each: Sequence[Fraction], room: Sequence[int], left: int
) -> int:
    """Give the chip that would be done first all that it can do before the next one would; return how much."""
    done, place = heapq.heappop(queue)
    given = 1
    if queue:
        given += max(0, math.ceil((queue[0][0] - done) / each[place]) - 1)
    else:
        given = left
    given = min(given, left, room[place] - sizes[place])
    sizes[place] += given
    if sizes[place] < room[place]:
        heapq.heappush(queue, (done + given * each[place], place))
    return given


def _given(name: str, values: Sequence[Number] | None, other: str) -> Sequence[Number]:
    if values is None:
        raise ArgumentError(f"`{other}` needs `{name}`, one for each chip")
    return values


def _each(name: str, values: Sequence[Number], count: int, positive: bool = False) -> list[Fraction]:
    if len(values) != count:
        raise ArgumentError(f"`{name}` must be one for each of {count} chips, got {len(values)}")
    for place, value in enumerate(values):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0 or (positive and value == 0):
            what = "a number of more than 0" if positive else "a number of at least 0"
            raise ArgumentError(f"`{name}` of chip {place} must be {what}, got {value!r}")
    return [Fraction(value) for value in values]


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"`{name}` must be a whole number of at least {least}, got {value!r}")
