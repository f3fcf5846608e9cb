"""When the steps of all ranks' programs are, so that both sides of a message have it at one time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from devices.algorithms.schedule import Copy, Schedule, Send


@final
@dataclass(frozen=True, slots=True)
class Times:
    """The times of a rank's steps, in order.

    Args:
        steps: of each step of its program, the time; the first possible one is 0.
        total: how many times all ranks have.
    """

    steps: tuple[int, ...]
    total: int


def times(schedule: Schedule, rank: int) -> Times | None:
    """Return when a rank's steps are; None where no times are such that both sides of each message have it at one.

    Args:
        schedule: validated.
        rank: whose times.
    """
    counts = [len(schedule.program(each)) for each in range(schedule.size)]
    first = [0]
    for count in counts:
        first.append(first[-1] + count)
    parents = list(range(first[-1]))

    def top(step: int) -> int:
        while parents[step] != step:
            parents[step] = step = parents[parents[step]]
        return step

    sent: dict[tuple[int, int], deque[int]] = {}
    received: dict[tuple[int, int], deque[int]] = {}
    for each in range(schedule.size):
        for number, step in enumerate(schedule.program(each), first[each]):
            for action in step:
                if isinstance(action, Copy):
                    continue
                is_send = isinstance(action, Send)
                pair = (each, action.peer) if is_send else (action.peer, each)
                mine, others = (sent, received) if is_send else (received, sent)
                if others.get(pair):
                    parents[top(number)] = top(others[pair].popleft())
                else:
                    mine.setdefault(pair, deque()).append(number)
    found = _longest_ways(first, [top(step) for step in range(first[-1])])
    if found is None:
        return None
    own = tuple(found[top(step)] for step in range(first[rank], first[rank + 1]))
    return Times(own, max(found.values(), default=-1) + 1)


def _longest_ways(first: list[int], tops: list[int]) -> dict[int, int] | None:
    """Return for each set of steps that are at one time how many must come before; None if some wait for themselves."""
    after: dict[int, list[int]] = {step: [] for step in tops}
    before = dict.fromkeys(after, 0)
    for start, stop in pairwise(first):
        for step in range(start, stop - 1):
            after[tops[step]].append(tops[step + 1])
            before[tops[step + 1]] += 1
    found = dict.fromkeys(after, 0)
    ready = deque(step for step, count in before.items() if not count)
    left = len(before)
    while ready:
        step = ready.popleft()
        left -= 1
        for other in after[step]:
            found[other] = max(found[other], found[step] + 1)
            before[other] -= 1
            if not before[other]:
                ready.append(other)
    return None if left else found
