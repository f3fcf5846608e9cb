"""How the verbs of a group run: at once, or on a thread of the group behind those that are queued there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch

from devices._backend import Group, Pending
from devices.algorithms.started import DONE, Started, failure
from devices.algorithms.worker import Job, Worker
from devices.errors import CollectiveError, DevicesError

Start = tuple[Pending, Callable[[], None] | None]
"""A verb of the communicator's own that was started, and what remains to be done once it is through."""


@final
class Runner:
    """Runs verbs in the order of the calls and wraps their errors. While `worker` is busy, the verbs queue there.

    Args:
        group: the members.
        device: where this rank's tensors live.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group = group
        self._device = device
        self._is_aborted = False
        self.worker: Worker | None = None

    def hand_on(self, verb: str, start: Callable[..., Pending], args: tuple[Any, ...], async_op: bool) -> Pending:
        """Run a verb of the communicator's own that needs nothing before or after."""
        if self.worker is not None and self.worker.is_busy:
            return self._enqueue(verb, lambda: _wait(start(*args)), async_op)
        try:
            pending = start(*args)
            if async_op:
                return Started(self._group, verb, pending)
            pending.wait()
        except DevicesError:
            raise
        except Exception as error:
            raise failure(self._group, verb, error) from error
        return DONE

    def native(self, verb: str, start: Callable[[], Start], async_op: bool) -> Pending:
        """Run a reduction of the communicator's own."""
        if self.worker is not None and self.worker.is_busy:

            def run() -> None:
                pending, finish = start()
                pending.wait()
                if finish is not None:
                    finish()

            return self._enqueue(verb, run, async_op)
        try:
            pending, finish = start()
            if async_op:
                return Started(self._group, verb, pending, finish)
            pending.wait()
            if finish is not None:
                finish()
        except DevicesError:
            raise
        except Exception as error:
            raise failure(self._group, verb, error) from error
        return DONE

    def compose(self, verb: str, run: Callable[[], None], async_op: bool) -> Pending:
        """Run a verb that this process itself carries through."""
        if async_op or (self.worker is not None and self.worker.is_busy):
            return self._enqueue(verb, run, async_op)
        with torch.no_grad():
            self._guard(verb, run)
        return DONE

    def abort(self) -> None:
        """Start nothing more of what is queued or composed."""
        self._is_aborted = True

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self.worker is not None:
            self.worker.close()

    def _enqueue(self, verb: str, run: Callable[[], None], async_op: bool) -> Pending:
        if self.worker is None:
            self.worker = Worker(f"devices {self._group.name} {self._group.rank}")
        job = Job(partial(self._guard, verb, run), self._device)
        self.worker.submit(job)
        if async_op:
            return job
        job.wait()
        return DONE

    def _guard(self, verb: str, run: Callable[[], None]) -> None:
        """Run a verb, its errors wrapped."""
        if self._is_aborted:
            raise CollectiveError(f"{self._group}: {verb} was not started: the group was aborted")
        try:
            run()
        except DevicesError:
            raise
        except Exception as error:
            raise failure(self._group, verb, error) from error


def _wait(pending: Pending) -> None:
    pending.wait()
