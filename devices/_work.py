"""`Work`: a verb that was started and not yet waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, final

from devices._backend import Pending

T = TypeVar("T")


@final
class Work(Generic[T]):
    """What a verb returns with `async_op=True`.

    Until it is done, the tensors that the verb reads must not be changed, nor those that it writes be read.

    >>> import torch, devices
    >>> with devices.init() as world:
    ...     work = devices.all_reduce(torch.ones(2), async_op=True)
    ...     work.result()
    tensor([1., 1.])
    """

    def __init__(self, pending: Pending, finish: Callable[[], T]) -> None:
        self._pending = pending
        self._finish: Callable[[], T] | None = finish
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._result: T

    def wait(self) -> bool:
        """Block until the verb is done; raise what it raised, each time it is asked.

        Returns:
            True, as torch's `Work.wait` does.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._finish is not None:
                try:
                    self._pending.wait()
                    self._result = self._finish()
                except BaseException as error:
                    self._error = error
                    raise
                self._finish = None
        return True

    def is_completed(self) -> bool:
        """Return whether `wait` would return, or raise, at once."""
        return self._finish is None or self._error is not None or self._pending.is_completed()

    def exception(self) -> BaseException | None:
        """Wait, then return what the verb raised, or None."""
        try:
            self.wait()
        except BaseException as error:
            return error
        return None

    def result(self) -> T:
        """Wait, then return what the synchronous verb would have returned."""
        self.wait()
        return self._result


@final
class Together:
    """Several pending verbs as one."""

    def __init__(self, pendings: Sequence[Pending]) -> None:
        self._pendings = pendings

    def wait(self) -> None:
        """Wait for each."""
        for pending in self._pendings:
            pending.wait()

    def is_completed(self) -> bool:
        """Return whether each is done."""
        return all(pending.is_completed() for pending in self._pendings)
