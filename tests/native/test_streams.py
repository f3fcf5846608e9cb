"""What is composed on a thread of the group runs on the caller's stream, and whoever waits has its own stream wait."""

from __future__ import annotations

import threading
from types import TracebackType

import pytest
import torch

from devices import _capture
from devices.algorithms.streams import OnStream
from devices.algorithms.worker import Job, Worker

_here = threading.local()


class Stream:
    """Stands in for a stream of an accelerator: it notes what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []

    def __enter__(self) -> None:
        self._before = current()
        _here.stream = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _here.stream = self._before

    def record_event(self) -> Event:
        self.told.append("event")
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.told.append(f"waits for {event.stream.name}")


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_reached = False

    def query(self) -> bool:
        return self.is_reached


def current(device: object = None) -> Stream:
    if not hasattr(_here, "stream"):
        _here.stream = Stream("another thread's")
    stream: Stream = _here.stream
    return stream


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_stream", current)


def test_a_job_runs_on_the_stream_of_its_caller_and_the_stream_of_who_waits_waits_for_it() -> None:
    device, worker = torch.device("meta", 0), Worker("a test's")
    ours, other = Stream("the caller's"), Stream("the other")
    with ours:
        job = Job(lambda: current().told.append("runs"), device)
        worker.submit(job)
        with other:
            job.wait()
    worker.close()
    assert ours.told == ["runs", "event"]
    assert other.told == ["waits for the caller's"]


def test_it_is_completed_only_when_the_device_has_done_it() -> None:
    with Stream("a"):
        work = OnStream(torch.device("meta", 0))
    assert not work.is_completed()
    work._event.is_reached = True  # type: ignore[attr-defined]
    assert work.is_completed()


def test_nothing_is_captured_where_there_are_no_graphs_nor_any_device() -> None:
    assert [_capture.is_capturing(kind) for kind in ("cpu", "meta", "cuda", "vulkan")] == [False] * 4
