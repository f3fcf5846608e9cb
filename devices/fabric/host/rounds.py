"""Large collectives go through buffers piece by piece: in each round all ranks write, meet, and read.

A rank has two buffers, for rounds in turns. It writes into one when all have come to the round before, and so are
through with reading what that buffer held: nothing is overwritten that a peer still reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from devices.fabric.host.arrays import Array
from devices.fabric.host.layout import BUFFER, STEP
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import Watch


@final
class Rounds:
    """The rounds of one rank of a group, numbered over all its collectives.

    Args:
        segment: the group's memory.
        rank: this rank.
        size: the number of ranks.
        watch: what this rank waits by.
    """

    def __init__(self, segment: Segment, rank: int, size: int, watch: Watch) -> None:
        self._words = segment.words
        steps = [segment.layout.control_word(each) + STEP for each in range(size)]
        self._mine = steps[rank]
        self._ranks = [each for each in range(size) if each != rank]
        self._others = [steps[each] for each in self._ranks]
        self._watch = watch
        self._step = 0
        layout = segment.layout
        self._buffers = [
            [segment.bytes[(start := layout.buffer(each, parity)) : start + BUFFER] for each in range(size)]
            for parity in (0, 1)
        ]

    def following(self) -> list[Array]:
        """Return the buffers of all ranks for the round that is next: this rank writes its own."""
        return self._buffers[(self._step + 1) & 1]

    def meet(self, about: Callable[[], str]) -> list[Array]:
        """Say that this rank has written its buffer, wait until all have, and return the buffers, to be read."""
        self._step += 1
        step, words = self._step, self._words
        words[self._mine] = step
        for index in self._others:
            if words[index] < step:
                self._wait(step, about)
                break
        return self._buffers[step & 1]

    def _wait(self, step: int, about: Callable[[], str]) -> None:
        words, others = self._words, self._others

        def is_ready() -> bool:
            for index in others:  # noqa: SIM110 - a generator costs more than the look
                if words[index] < step:
                    return False
            return True

        def missing() -> list[int]:
            return [rank for rank, index in zip(self._ranks, others, strict=True) if words[index] < step]

        self._watch.until(is_ready, missing, about)
