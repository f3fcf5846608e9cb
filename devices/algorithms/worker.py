"""A thread that does one job after another, so that composed verbs can run while their caller goes on."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import final

import torch

from devices.algorithms import forked
from devices.algorithms.concurrency import Queue, concurrency
from devices.algorithms.lines import caller, speak_for
from devices.algorithms.streams import OnStream


@final
class Job:
    """Something to do, and then what came of it. A `Pending`.

    Args:
        run: the thing to do.
        device: where its tensors live; the caller's stream there and its inference mode hold for the job too.
    """

    def __init__(self, run: Callable[[], None], device: torch.device) -> None:
        self._run: Callable[[], None] | None = run
        self._line = caller()
        self._inference = torch.is_inference_mode_enabled()
        self._device = device
        self._stream = None if device.type == "cpu" else torch.accelerator.current_stream(device)
        self._on_stream: OnStream | None = None
        self._done = concurrency().event()
        self._process = forked.process
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it."""
        assert self._run is not None
        speak_for(self._line)
        try:
            with (
                self._stream or contextlib.nullcontext(),
                torch.inference_mode() if self._inference else torch.no_grad(),
            ):
                self._run()
                if self._stream is not None:
                    self._on_stream = OnStream(self._device)
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Let those go on who wait."""
        # Its tensors are given back at once, not with the last reference to the job.
        self._run = None
        self._done.set()

    def wait(self) -> None:
        """Block until it is done, and raise what it raised."""
        if self._is_left:
            raise forked.left_under_way("a verb that is under way")
        self._done.wait()
        if self._error is not None:
            raise self._error
        if self._on_stream is not None:
            # It was done on the caller's stream, and whoever waits may be on another.
            self._on_stream.wait()

    def is_completed(self) -> bool:
        """Return whether it is done, by the device too."""
        if not self._done.is_set():
            return self._is_left
        return self._on_stream is None or self._on_stream.is_completed()

    @property
    def _is_left(self) -> bool:
        """Whether this process was forked from the one whose thread does it."""
        return self._process != forked.process and not self._done.is_set()


@final
class Worker:
    """The thread, started at once; it ends with `close`, or when nobody refers to the worker any more."""

    def __init__(self, name: str) -> None:
        threads = concurrency()
        self._queue = threads.queue()
        self._unfinished = _Count()
        self._thread = threads.start(partial(_work, self._queue, self._unfinished), name)
        self._end = weakref.finalize(self, self._queue.put, None)

    @property
    def is_busy(self) -> bool:
        """Whether a job is queued or running."""
        return self._unfinished.value > 0

    def submit(self, job: Job) -> None:
        """Do the job after all that were submitted before it."""
        self._unfinished.add(1)
        self._queue.put(job)

    def close(self) -> None:
        """Do what is queued, then end the thread."""
        self._end()
        self._thread.join()


@final
class _Count:
    """A number that two threads change."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, difference: int) -> None:
        with self._lock:
            self.value += difference


def _work(jobs: Queue, unfinished: _Count) -> None:
    job: Job | None
    while (job := jobs.get()) is not None:
        job.run()
        # Before `finish`: whoever has waited for the last job finds the worker idle.
        unfinished.add(-1)
        job.finish()
        del job
