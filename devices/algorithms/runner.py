"""How the verbs of a group run: at once, or on a thread of the group behind those that are queued there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch

from devices._backend import Asked, Communicator, Pending
from devices._capture import is_capturing
from devices.algorithms.started import DONE, Started, fail
from devices.algorithms.streams import OnStream
from devices.algorithms.worker import Job, Worker
from devices.errors import CollectiveError
from devices.recorder.record import DTYPE, NUMEL, OP, ROOT, VERB, GroupRecorder, Record, end

Start = tuple[Pending, Callable[[], None] | None]
"""A verb of the communicator's own that was started, and what remains to be done once it is through."""


@final
class Runner:
    """Runs verbs in the order of the calls and wraps their errors. While `worker` is busy, the verbs queue there.

    Each is handed over with its record in the flight recorder, which says when it ends.

    Args:
        flight: records the group's calls.
        device: where this rank's tensors live.
        communicator: carries the verbs.
    """

    def __init__(self, flight: GroupRecorder, device: torch.device, communicator: Communicator) -> None:
        self._group = flight.group
        self._flight = flight
        self._device = device
        self._blocks = communicator.blocking
        # None where nobody compares the ranks' calls.
        self._expect = None if type(communicator).expect is Communicator.expect else communicator.expect
        self._agree = communicator.agree
        self.worker: Worker | None = None

    def hand_on(
        self,
        record: Record,
        start: Callable[..., Pending],
        args: tuple[Any, ...],
        async_op: bool,
        sizes: Sequence[int] = (),
    ) -> Pending:
        """Run a verb of the communicator's own that needs nothing before or after; `sizes` are those of `Asked`."""
        if (async_op and self._blocks) or (self.worker is not None and self.worker.is_busy):

            def run() -> None:
                if self._expect is not None:
                    self._expect(_asked(record, sizes))
                start(*args).wait()

            return self._enqueue(record, run, async_op)
        try:
            if self._expect is not None:
                self._expect(_asked(record, sizes))
            pending = start(*args)
            if async_op:
                return Started(self._flight, record, pending)
            pending.wait()
        except Exception as error:
            fail(self._flight, record, error)
        end(record)
        return DONE

    def native(self, record: Record, start: Callable[[], Start], async_op: bool) -> Pending:
        """Run a reduction of the communicator's own."""
        if (async_op and self._blocks) or (self.worker is not None and self.worker.is_busy):

            def run() -> None:
                if self._expect is not None:
                    self._expect(_asked(record))
                pending, finish = start()
                pending.wait()
                if finish is not None:
                    finish()

            return self._enqueue(record, run, async_op)
        try:
            if self._expect is not None:
                self._expect(_asked(record))
            pending, finish = start()
            if async_op:
                return Started(self._flight, record, pending, finish)
            pending.wait()
            if finish is not None:
                finish()
        except Exception as error:
            fail(self._flight, record, error)
        end(record)
        return DONE

    def compose(self, record: Record, run: Callable[[], None], async_op: bool, sizes: Sequence[int] = ()) -> Pending:
        """Run a verb that this process itself carries through; `sizes` are those of `Asked`."""
        if self._expect is not None:
            run = partial(self._run_agreed, self._expect, _asked(record, sizes), run)
        is_busy = self.worker is not None and self.worker.is_busy
        if (async_op or is_busy) and not is_capturing(self._device.type):
            return self._enqueue(record, run, async_op)
        # What is captured in a graph is captured here: the host waits for nothing, and another thread may not join in.
        with torch.no_grad():
            self._guard(record, run)
        return OnStream(self._device) if async_op and self._device.type != "cpu" else DONE

    def nothing(self, record: Record, async_op: bool, sizes: Sequence[int] = ()) -> Pending:
        """Run a verb that has nothing to do: whether the peers called the same may be compared all the same."""
        return self.compose(record, lambda: None, async_op and self._expect is not None, sizes)

    def _run_agreed(self, expect: Callable[[Asked], None], asked: Asked, run: Callable[[], None]) -> None:
        expect(asked)
        self._agree()
        run()

    def abort(self) -> None:
        """Start nothing more of what is queued or composed."""
        self._flight.is_aborted = True

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self.worker is not None:
            self.worker.close()
        self._flight.closed()

    def _enqueue(self, record: Record, run: Callable[[], None], async_op: bool) -> Pending:
        if self.worker is None:
            self.worker = Worker(f"devices {self._group.name} {self._group.rank}")
        job = Job(partial(self._guard, record, run), self._device)
        self.worker.submit(job)
        if async_op:
            return job
        job.wait()
        return DONE

    def _guard(self, record: Record, run: Callable[[], None]) -> None:
        """Run a verb, its errors wrapped."""
        try:
            if self._flight.is_aborted:
                raise CollectiveError(f"{self._group}: {record[VERB]} was not started: the group was aborted")
            run()
        except Exception as error:
            fail(self._flight, record, error)
        end(record)


def _asked(record: Record, sizes: Sequence[int] = ()) -> Asked:
    """Return what the ranks must agree on, of a call that is on record."""
    verb = record[VERB]
    # What goes from one rank to another in an all_to_all both of them know, and the others do not.
    has_size = record[DTYPE] is not None and verb != "all_to_all" and (verb == "permute" or not sizes)
    size = record[NUMEL] if has_size else -1
    return Asked(verb, record[DTYPE], size, record[OP], record[ROOT], tuple(sizes))
