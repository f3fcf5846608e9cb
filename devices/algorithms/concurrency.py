"""Where a composed verb's thread comes from: Python's own or, where ranks are threads, those that take turns."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, final


class Event(Protocol):
    def set(self) -> None: ...
    def is_set(self) -> bool: ...
    def wait(self) -> Any: ...


class Queue(Protocol):
    def put(self, item: Any) -> None: ...
    def get(self) -> Any: ...


class Thread(Protocol):
    def join(self) -> None: ...


class Concurrency(Protocol):
    """Makes what a thread and those who wait for it need.

    Attributes:
        is_cooperative: whether only one thread runs at a time, until it waits by what is made here.
    """

    is_cooperative: bool

    def event(self) -> Event: ...
    def queue(self) -> Queue: ...
    def start(self, target: Callable[[], None], name: str) -> Thread: ...


@final
class _Threads:
    is_cooperative = False

    def event(self) -> Event:
        return threading.Event()

    def queue(self) -> Queue:
        return queue.SimpleQueue()

    def start(self, target: Callable[[], None], name: str) -> Thread:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread


_THREADS = _Threads()
_here = threading.local()


def use(concurrency: Concurrency) -> None:
    """Let verbs that this thread calls take their threads from `concurrency`."""
    _here.concurrency = concurrency


def concurrency() -> Concurrency:
    """Return what this thread takes its threads from."""
    found: Concurrency = getattr(_here, "concurrency", _THREADS)
    return found
