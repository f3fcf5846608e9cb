"""Works as torch wants them: subclasses of its own, with futures for what torch chains to a verb."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist

from devices._backend import Pending
from devices._work import Together, Work

Started = tuple[Pending, Callable[[], object] | None]
"""A verb that was started, and what remains to be done once it has finished."""


class DoneWork(dist.Work):
    """A work that was done when it was made."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self._tensors = tensors

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> Any:
        return self._tensors

    def get_future(self) -> torch.futures.Future[Any]:
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(self._tensors)
        return future


class PendingWork(dist.Work):
    """A work made of our own, waited for once."""

    def __init__(self, started: Sequence[Started], tensors: Any) -> None:
        super().__init__()
        self._started = started
        self._work: Work[Any] = Work(Together([pending for pending, _ in started if pending]), self._finish)
        self._tensors = tensors

    def _finish(self) -> Any:
        for _, finish in self._started:
            if finish is not None:
                finish()
        return self._tensors

    def wait(self, timeout: timedelta | None = None) -> bool:
        return self._work.wait()

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def is_success(self) -> bool:
        return self.exception() is None

    def exception(self) -> BaseException | None:
        return self._work.exception()

    def result(self) -> Any:
        return self._work.result()

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future that a thread of its own completes, so that what is chained to it overlaps with the caller."""
        future: torch.futures.Future[Any] = torch.futures.Future()

        def settle() -> None:
            try:
                future.set_result(self._work.result())
            except Exception as error:
                future.set_exception(error)

        if self._work.is_completed():
            settle()
        else:
            threading.Thread(target=settle, name="devices-future", daemon=True).start()
        return future
