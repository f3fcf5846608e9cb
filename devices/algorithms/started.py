"""Verbs of a communicator's own on their way, and what a transport's error is to the caller."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn, final

import torch.distributed as dist

from devices._backend import Group, Pending, PendingFrom
from devices.algorithms import forked
from devices.algorithms.concurrency import concurrency
from devices.errors import CollectiveError, CollectiveTimeoutError, DevicesError
from devices.recorder.record import ENDED, VERB, GroupRecorder, Record, end

LONG = timedelta(days=365)
"""For gloo: however long it takes."""


@final
class _Done:
    def wait(self) -> None:
        pass

    def is_completed(self) -> bool:
        return True


DONE = _Done()
"""What a verb returns that was done before it returned."""


def failure(group: Group, verb: str, error: Exception) -> CollectiveError:
    """Return what is to be raised for an error of the transport that is none of ours."""
    text = str(error) or type(error).__name__
    is_late = isinstance(error, TimeoutError) or "timed out" in text.lower() or "timeout" in text.lower()
    kind = CollectiveTimeoutError if is_late else CollectiveError
    return kind(f"{group}: {verb} failed: {text}")


def fail(flight: GroupRecorder, record: Record, error: Exception) -> NoReturn:
    """Raise what a call has failed by, recorded, and wrapped if it is none of ours."""
    if isinstance(error, DevicesError):
        flight.failed(record, error)
        raise error
    if flight.is_aborted:
        # The transport may say that it waited for too long, or that a peer went away.
        wrapped = CollectiveError(f"{flight.group}: {record[VERB]} failed: the group was aborted")
    else:
        wrapped = failure(flight.group, record[VERB], error)
    flight.failed(record, wrapped)
    raise wrapped from error


def go_on_beside(pending: Pending) -> None:
    """Tell messages on their way that the program goes on beside them, if they want to know."""
    if (tell := getattr(pending, "go_on_beside", None)) is not None:
        tell()


def wait_however_long(pending: Pending) -> None:
    """Wait for a message that the program does not wait for yet, so that no timeout counts."""
    wait = getattr(pending, "wait_however_long", None)
    if wait is not None:
        wait()
    elif isinstance(pending, dist.Work):
        # It never says that it is completed; a timeout would end all that is between the ranks.
        pending.wait(LONG)
    elif concurrency().is_cooperative:
        pending.wait()
    else:
        nap = 20e-6
        while not pending.is_completed():
            time.sleep(nap)
            nap = min(nap * 1.2, 0.001)
        pending.wait()


@final
class Started:
    """A verb of the communicator's own on its way, its errors wrapped.

    Args:
        flight: records the group's calls.
        record: that of this call.
        pending: what the communicator returned.
        finish: what remains to be done once that is through.
    """

    def __init__(
        self, flight: GroupRecorder, record: Record, pending: Pending, finish: Callable[[], None] | None = None
    ) -> None:
        self._flight = flight
        self._record = record
        self._pending = pending
        self._finish = finish
        self._lock = threading.Lock()
        self._process = forked.process
        self._is_done = False
        self._error: DevicesError | None = None

    def wait(self) -> None:
        if self._is_left:
            raise forked.left_under_way(f"{self._flight.group}: {self._record[VERB]}")
        with self._lock:
            if not self._is_done:
                try:
                    self._pending.wait()
                    if self._finish is not None:
                        self._finish()
                    if not self._record[ENDED]:
                        end(self._record)
                except Exception as error:
                    try:
                        fail(self._flight, self._record, error)
                    except DevicesError as failed:
                        self._error = failed
                self._is_done = True
                self._finish = None
            if self._error is not None:
                raise self._error

    @property
    def _is_left(self) -> bool:
        """Whether it was under way when this process was forked from the one that waits for it."""
        return self._process != forked.process and not self._is_done

    def is_completed(self) -> bool:
        is_done = self._is_done or self._is_left or self._pending.is_completed()
        if is_done and self._finish is not None and not self._is_left:
            # Who only asks reads the result then. An error is for who waits.
            with contextlib.suppress(DevicesError):
                self.wait()
        if is_done and not self._record[ENDED]:
            end(self._record)
        return is_done


@final
class StartedFrom:
    """The same of a message whose source is not known beforehand."""

    def __init__(self, started: Started, pending: PendingFrom) -> None:
        self._started = started
        self._pending = pending

    def wait(self) -> None:
        self._started.wait()

    def is_completed(self) -> bool:
        return self._started.is_completed()

    def source(self) -> int:
        return self._pending.source()
