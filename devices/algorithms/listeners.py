"""Threads that wait for messages beside the program: one goes on with the next message once it is through with one.

There are as many as messages are waited for at once: one for those of a key, and one for each that has none. Which of
those comes first nobody knows, so that none may hold up another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import final

from devices.algorithms.concurrency import Queue, concurrency

Job = Callable[[], None]
"""Waits for a message, and keeps for itself what goes wrong."""


@final
class Listeners:
    """The threads, started as they are needed; each ends with `close`, once it has nothing to wait for.

    Args:
        name: what they are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[Queue] = []
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def listen(self, job: Job, key: Hashable = None) -> None:
        """Let a thread do a job: after those of the same key, of which none comes before another; beside all others."""
        with self._lock:
            key = object() if key is None else key
            if (before := self._waiting.get(key)) is not None:
                before.append(job)
                return
            self._waiting[key] = deque((job,))
            thread = self._idle.pop() if self._idle else None
        if thread is None:
            thread = concurrency().queue()
            concurrency().start(partial(self._work, thread), self._name)
        thread.put(key)

    def _work(self, keys: Queue) -> None:
        while (key := keys.get()) is not None:
            while (job := self._next(key, keys)) is not None:
                job()
                del job

    def _next(self, key: Hashable, keys: Queue) -> Job | None:
        """Return the next job of a key; None if there is no more, and its thread waits for another key."""
        with self._lock:
            if jobs := self._waiting[key]:
                return jobs.popleft()
            del self._waiting[key]
            if self._is_closed:
                keys.put(None)
            else:
                self._idle.append(keys)
        return None

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for thread in idle:
            thread.put(None)
