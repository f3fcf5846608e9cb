"""Works as torch wants them: subclasses of its own, with futures for what torch chains to a verb."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, final
from weakref import WeakSet

import torch
import torch.distributed as dist

from devices._backend import Pending
from devices._work import Together, Work
from devices.algorithms.concurrency import concurrency
from devices.errors import CollectiveTimeoutError

Started = tuple[Pending, Callable[[], object] | None]
"""A verb that was started, and what remains to be done once it has finished."""


_settling: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _let_settle() -> None:
    """Let threads that are at their end reach it: C++ aborts the process where Python ends them at its own."""
    deadline = time.monotonic() + 1
    for thread in list(_settling):
        thread.join(max(0.0, deadline - time.monotonic()))


@final
class DoneWork(dist.Work):
    """A work that was done when it was made."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def synchronize(self) -> None:
        pass

    def result(self) -> Any:
        return []

    def get_future(self) -> torch.futures.Future[Any]:
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result([])
        return future


DONE = DoneWork()
"""What a synchronous call returns: torch waits for it and drops it."""


@final
class PendingWork(dist.Work):
    """A work on its way.

    Args:
        started: what it waits for and then does.
        tensors: its result.
        source: the rank that a message came from, once it has come.
    """

    def __init__(self, started: Sequence[Started], tensors: Any, source: Callable[[], int] | None = None) -> None:
        super().__init__()
        finishes = [finish for _, finish in started if finish is not None]

        def finish() -> Any:
            for each in finishes:
                each()
            return tensors

        self._work: Work[Any] = Work(Together([pending for pending, _ in started]), finish)
        self._source = source

    def wait(self, timeout: timedelta | None = None) -> bool:
        # No timeout of its own, which torch says by None or zero, leaves the group's.
        if timeout:
            self._wait_at_most(timeout)
        return self._work.wait()

    def _wait_at_most(self, timeout: timedelta) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._work.is_completed():
            if time.monotonic() > deadline:
                raise CollectiveTimeoutError(f"the work was not done within the {timeout} that wait() was given")
            time.sleep(0.001)

    def synchronize(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def is_success(self) -> bool:
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """Return what the verb raised; None, as torch has it, while it is on its way too."""
        return self._work.exception() if self.is_completed() else None

    def result(self) -> Any:
        return self._work.result()

    def _source_rank(self) -> int:
        if self._source is None:
            raise RuntimeError("only a message that was received has a source")
        return self._source()

    source_rank = _source_rank

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future that a thread of its own completes, so that what is chained to it runs beside the caller.

        Where threads take turns it is complete already: torch's C++ waits for a future without giving its turn away.
        """
        future: torch.futures.Future[Any] = torch.futures.Future()

        def settle() -> None:
            try:
                result = self._work.result()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if concurrency().is_cooperative or self._work.is_completed():
            settle()
        else:
            thread = threading.Thread(target=settle, name="devices future", daemon=True)
            _settling.add(thread)
            thread.start()
        return future
