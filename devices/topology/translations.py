"""Graphs that look the same from many devices: the moves that take one device to another, as in a torus.

Where there are such moves, what is found for one device holds for all that it is moved to. They are looked for among
those that turn the digits of a device's number: 4 x 4 x 4 devices, numbered row by row, have three digits. Each is
tried on every arc. Where devices of several kinds come one kind after the other, there is a block of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.symmetry import Numbers, extended


@final
@dataclass(frozen=True)
class Translations:
    """The moves of a graph, of which one alone leaves a device where it is, and that leaves all.

    Ranks come in blocks, each as long as there are moves. A move takes the first of each block to one of the block.

    Args:
        shape: how many values each digit of a rank within its block has.
        moves: `moves[place, node]` is where a node goes as the first rank of each block is taken to that place of it.
        blocks: how many blocks there are.
    """

    shape: tuple[int, ...]
    moves: Numbers
    blocks: int

    @property
    def count(self) -> int:
        """How many moves there are, and ranks in a block."""
        return len(self.moves)

    def minus(self, place: int) -> int:
        """Return the place whose move takes `place` back to the first."""
        found, stride = 0, 1
        for length in reversed(self.shape):
            found += -(place // stride) % length * stride
            stride *= length
        return found


def translations(capacities: Capacities) -> Translations | None:
    """Return moves that take each device to as many others as can be; None if there are no such moves."""
    size = len(capacities.endpoints)
    steps = [(stride, length) for stride in _divisors(size) for length in _divisors(size // stride) if length > 1]
    images = [
        dict(zip(capacities.endpoints, (capacities.endpoints[turned] for turned in _turned(size, *step)), strict=True))
        for step in steps
    ]
    shaped = [_keeps_degrees(capacities, image) for image in images]
    found = extended(capacities, [image for image, can_be in zip(images, shaped, strict=True) if can_be])
    tried = iter(found)
    valid = {
        step: move for step, can_be in zip(steps, shaped, strict=True) if can_be and (move := next(tried)) is not None
    }
    chain = _chain(1, size, valid)
    if not chain:
        return None
    moves = np.arange(capacities.size, dtype=np.int64)[None, :]
    for step in chain:
        powers = [np.arange(capacities.size, dtype=np.int64)]
        for _ in range(step[1] - 1):
            powers.append(valid[step][powers[-1]])
        # The devices come in the order of their digits, the last of which turns fastest.
        moves = np.concatenate([power[moves] for power in powers])
    return Translations(tuple(length for _, length in reversed(chain)), moves, size // len(moves))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _turned(size: int, stride: int, length: int) -> Iterator[int]:
    """Yield for each number the one whose digit of that stride and length is one more."""
    for number in range(size):
        digit = number // stride % length
        yield number + ((digit + 1) % length - digit) * stride


def _keeps_degrees(capacities: Capacities, image: dict[int, int]) -> bool:
    return all(
        capacities.entering[node] == capacities.entering[other]
        and capacities.colours[node] == capacities.colours[other]
        for node, other in image.items()
    )


def _chain(stride: int, size: int, valid: Mapping[tuple[int, int], Numbers]) -> list[tuple[int, int]]:
    """Return digits that make up as many numbers as can be, the last one first, each as long as can be."""
    best: list[tuple[int, int]] = []
    most = 1
    for length in reversed(_divisors(size // stride)):
        if (stride, length) in valid:
            rest = _chain(stride * length, size, valid)
            made = length * math.prod(each for _, each in rest)
            if made > most:
                best, most = [(stride, length), *rest], made
            if stride * made == size:
                break
    return best
