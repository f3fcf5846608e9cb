"""What a rank's own threads and events are while ranks are threads: they wait by the baton."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, final

from devices.algorithms.concurrency import use
from devices.algorithms.lines import line_of
from devices.testing._baton import Baton, Task
from devices.testing._entrance import entrance

_numbers = itertools.count()


@final
class BatonThreads:
    """Threads of one rank that run when they get the baton.

    Args:
        baton: the run's.
        rank: whose threads.
    """

    is_cooperative = True

    def __init__(self, baton: Baton, rank: int) -> None:
        self._baton = baton
        self._rank = rank

    def event(self) -> _Event:
        return _Event(self._baton)

    def queue(self) -> _Queue:
        return _Queue(self._baton)

    def start(self, target: Callable[[], None], name: str) -> _Thread:
        def body() -> None:
            use(self)
            target()

        return _Thread(self._baton, self._baton.start(self._rank, body, is_helper=True))


@final
class _Event:
    """That something which a helper does is done."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._key = "event", next(_numbers)
        self._is_set = False
        frame = sys._getframe(1)
        self._about = f"{entrance(frame) or 'a verb'}, started at {line_of(frame)} to run beside the program,"

    def set(self) -> None:
        self._is_set = True
        self._baton.wake(self._key)

    def is_set(self) -> bool:
        if not self._is_set:
            self._baton.pause(self._about)
        return self._is_set

    def wait(self) -> None:
        self._baton.wait(lambda: () if self._is_set else (self._key,), self._about)


@final
class _Queue:
    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._key = "queue", next(_numbers)
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._baton.wake(self._key)

    def get(self) -> Any:
        self._baton.wait(lambda: () if self._items else (self._key,), "work")
        return self._items.popleft()


@final
class _Thread:
    def __init__(self, baton: Baton, task: Task) -> None:
        self._baton = baton
        self._task = task

    def join(self) -> None:
        if self._baton.task is not None:
            self._baton.join(self._task)
