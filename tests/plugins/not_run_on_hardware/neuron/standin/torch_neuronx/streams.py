"""Streams and events of devices that do everything at once."""

from __future__ import annotations

import itertools
import time
from typing import Any, final

import torch

from . import machine

_numbers = itertools.count(1)


@final
class Stream:
    """A stream; all work in it is done before the call returns."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("neuron", machine.current_device())
        self.device_index = self.device.index
        self.stream_id = next(_numbers)

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None:
        machine.touch()

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event


@final
class Event:
    """An event, which has always happened."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self._time: float | None = None

    def record(self, stream: object = None) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        if self._time is None or end._time is None:
            raise RuntimeError("both events must be recorded")
        return (end._time - self._time) * 1e3


_default: dict[int, Stream] = {}
_current: dict[int, Stream] = {}


def default_stream(device: Any = None) -> Stream:
    """Return the device's default stream."""
    return _default.setdefault(machine.current_device(), Stream())


def current_stream(device: Any = None) -> Stream:
    """Return the device's current stream."""
    return _current.get(machine.current_device()) or default_stream(device)


def set_stream(stream: Stream) -> None:
    """Make `stream` the current one."""
    _current[stream.device_index] = stream


@final
class stream:  # noqa: N801 - the vendor's name
    """A context in which a stream is the current one."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> Stream | None:
        self._before = current_stream()
        if self._stream is not None:
            set_stream(self._stream)
        return self._stream

    def __exit__(self, *error: object) -> None:
        set_stream(self._before)
