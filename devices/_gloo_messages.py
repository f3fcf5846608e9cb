"""Gloo's messages on their way: torch's works for them say that they are completed only to who has waited."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable
from datetime import timedelta
from functools import partial
from typing import Any, final

from devices.algorithms.listeners import Job, Listeners
from devices.algorithms.started import LONG


@final
class GlooThreads:
    """The threads that wait for the messages of a group: one for each way that a message may go, a peer and a tag.

    On one way messages are through in the order in which they were posted, so that one thread waits for them in turn.
    Which way is the first to have one nobody knows, and gloo waits for one message at a time.
    """

    def __init__(self) -> None:
        self.posting = threading.Lock()
        """Held from before a message is posted until it has its number: other threads may post on the same way."""
        self._listeners = Listeners("devices gloo messages")
        self._numbers = itertools.count()
        # Of the message that is waited for last on each way on which any is.
        self._last: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def number(self) -> int:
        """Return how many messages were posted before."""
        return next(self._numbers)

    def listen(self, job: Job, way: Hashable, number: int) -> None:
        """Let a thread wait for the message of that number."""
        with self._lock:
            if number < self._last.get(way, -1):
                # Behind a later one, which is waited for already, it would never be told of.
                way = None
            elif way is not None:
                self._last[way] = number
                job = partial(self._do, job, way, number)
            # Within the lock: else two threads might queue in another order than they have looked.
            self._listeners.listen(job, way)

    def _do(self, job: Job, way: Hashable, number: int) -> None:
        job()
        with self._lock:
            if self._last[way] == number:
                del self._last[way]

    def close(self) -> None:
        """Let them end, once they have nothing to wait for."""
        self._listeners.close()


@final
class GlooMessage:
    """A message of gloo's, which may be waited for or asked whether it has come.

    Once it is asked, a thread waits for it, and the group's timeout counts from then on. Were gloo told to wait for no
    longer than that, it would end all that is between the two ranks.

    Args:
        work: torch's, which one thread alone may wait for.
        timeout: the group's.
        threads: those that wait.
        way: whom it goes to or comes from, and its tag; None where that is not known.
    """

    def __init__(self, work: Any, timeout: timedelta, threads: GlooThreads, way: Hashable = None) -> None:
        self._work = work
        self._timeout = timeout
        self._threads = threads
        self._way = way
        self._number = threads.number()
        self._lock = threading.Lock()
        self._deadline = 0.0
        self._heard: threading.Event | None = None
        self._error: Exception | None = None

    def wait(self) -> None:
        heard, is_mine = self._take()
        if is_mine:
            self._hear(heard)
        elif not heard.wait(max(0.0, self._deadline - time.monotonic())):
            raise RuntimeError(
                f"timed out: nothing came within {self._timeout.total_seconds():g} s since it was asked for"
            )
        self._raise()

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        heard, is_mine = self._take()
        if is_mine:
            self._hear(heard, LONG)
        else:
            heard.wait()
        self._raise()

    def is_completed(self) -> bool:
        heard, is_mine = self._take()
        if is_mine:
            self._threads.listen(lambda: self._hear(heard, LONG), self._way, self._number)
        return heard.is_set() or time.monotonic() > self._deadline

    def _take(self) -> tuple[threading.Event, bool]:
        """Return what is set once the message is through, and whether who asks is the one to wait for torch's work."""
        with self._lock:
            if self._heard is not None:
                return self._heard, False
            self._deadline = time.monotonic() + self._timeout.total_seconds()
            self._heard = threading.Event()
            return self._heard, True

    def _hear(self, heard: threading.Event, *timeout: timedelta) -> None:
        try:
            self._work.wait(*timeout)
        except Exception as error:
            self._error = error
        finally:
            heard.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def source(self) -> int:
        found: int = self._work._source_rank()
        return found
