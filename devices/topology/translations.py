"""Graphs that look the same from every device: the moves that take one device to another, as in a torus.

Where there are such moves, what is found for one device holds for all, moved. They are looked for among those that turn
the digits of a device's number: 4 x 4 x 4 devices, numbered row by row, have three digits. Each is tried on every arc.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from devices.topology.capacity import Capacities
from devices.topology.symmetry import Numbers, extended


@final
@dataclass(frozen=True)
class Translations:
    """The moves of a graph whose devices are all alike.

    Args:
        shape: how many values each digit of a rank has.
        moves: `moves[rank, node]` is where the move that takes rank 0 to `rank` takes a node.
    """

    shape: tuple[int, ...]
    moves: Numbers

    def minus(self, rank: int) -> int:
        """Return the rank whose move takes `rank` back to 0."""
        found, stride = 0, 1
        for length in reversed(self.shape):
            found += -(rank // stride) % length * stride
            stride *= length
        return found


def translations(capacities: Capacities) -> Translations | None:
    """Return moves that take each device to each other, if there are such."""
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
    if chain is None:
        return None
    moves = np.arange(capacities.size, dtype=np.int64)[None, :]
    for step in chain:
        powers = [np.arange(capacities.size, dtype=np.int64)]
        for _ in range(step[1] - 1):
            powers.append(valid[step][powers[-1]])
        # The devices come in the order of their digits, the last of which turns fastest.
        moves = np.concatenate([power[moves] for power in powers])
    return Translations(tuple(length for _, length in reversed(chain)), moves)


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


def _chain(stride: int, size: int, valid: dict[tuple[int, int], Numbers]) -> list[tuple[int, int]] | None:
    """Return digits that make up all numbers, the last one first, each as long as can be."""
    if stride == size:
        return []
    for length in reversed(_divisors(size // stride)):
        if (stride, length) in valid and (rest := _chain(stride * length, size, valid)) is not None:
            return [(stride, length), *rest]
    return None
