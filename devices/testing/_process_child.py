"""One rank in a process of its own, from the fork to its end."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from devices.testing._sending import Parcel, unpack

if TYPE_CHECKING:
    from devices._world import World

DUMP = signal.SIGRTMAX
"""Makes a rank write its stacks down, and ends it."""

Ending = Literal["returned", "raised", "died", "late", "ended"]


@dataclass(frozen=True, slots=True)
class InPytest:
    """How pytest, which starts the ranks, is told to tell errors.

    Args:
        verbose: how often `-v` was given.
        style: how long a traceback is.
    """

    verbose: int = 0
    style: Literal["long", "short"] = "long"


@dataclass(frozen=True, slots=True)
class Job:
    """What one rank is to do.

    Args:
        variables: its environment.
        folder: the working directory.
        backend: what its world is opened on.
        timeout: how long a verb may wait, in seconds.
        parcel: the function and its arguments.
        in_pytest: set where assertions are told as pytest tells them.
        kinds: how many ranks of which targets there are, where they are of several; `backend` then means nothing.
        assumed: what is assumed of those.
    """

    variables: Mapping[str, str]
    folder: str
    backend: str
    timeout: float
    parcel: Parcel
    in_pytest: InPytest | None = None
    kinds: Mapping[str, int] | None = None
    assumed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rank.

    Args:
        how: whether it returned, raised, died, was late, or was ended since another had failed.
        value: what it returned, pickled.
        headline: what happened, the first line of what there is to say.
        details: a traceback, or the stacks that it had.
        kind: the class of what it raised.
    """

    how: Ending
    value: bytes = b""
    headline: str = ""
    details: str = ""
    kind: str = ""


def main(end: Connection, printed: Connection, stacks: Connection, job: Job) -> None:
    """Be a rank: do the job, and send the outcome through `end`.

    Args:
        end: this side of a pipe to the process that started the ranks.
        printed: a file for what is printed.
        stacks: a file for stacks.
        job: what to do.
    """
    os.setsid()
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(job.variables)
    # It may have been removed, and then the parent stands nowhere either.
    with contextlib.suppress(FileNotFoundError):
        os.chdir(job.folder)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        os.dup2(printed.fileno(), descriptor)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(stacks.fileno())
    faulthandler.register(DUMP, stacks.fileno(), all_threads=True, chain=True)
    _like_a_fresh_process()
    outcome = _outcome(job)
    sys.stdout.flush()
    sys.stderr.flush()
    end.send_bytes(pickle.dumps(outcome))
    if outcome.how != "returned":
        # As long as its connections stay open no other rank fails since this one did.
        end.poll(None)


def end_with_parent() -> None:
    """Wait for the end of the process that started the ranks, and end this one and all that it started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _like_a_fresh_process() -> None:
    """Undo what a fork leaves that a process of its own would not have."""
    import numpy as np
    import torch

    # Its threads are not there any more if the process that was forked had used them.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    np.random.seed()


def _outcome(job: Job) -> Outcome:
    __tracebackhide__ = True
    asserts = _asserts() if job.in_pytest else None
    try:
        loader = asserts.prepare(job.in_pytest.verbose) if asserts and job.in_pytest else None
        function, arguments = unpack(job.parcel, loader)
        # What a rank that fails had open stays so, until it is ended.
        opened = contextlib.ExitStack()
        world = _world(job, opened)
        value = function(world, *arguments)
        world.close()
        opened.close()
    except BaseException as error:
        return _raised(error, job.in_pytest, asserts)
    try:
        return Outcome("returned", pickle.dumps(value))
    except Exception as error:
        said = f"what it returned, of type {type(value).__name__}, cannot be sent back: {error}"
        return Outcome("raised", headline=said, kind=type(error).__name__)


def _world(job: Job, opened: contextlib.ExitStack) -> World:
    """Open the rank's world."""
    import devices

    if job.kinds is None:
        return devices.init(job.backend, timeout=job.timeout)
    from devices._world import init_on
    from devices.testing._mixed import Mixed
    from devices.testing._mixed_processes import choice_of

    mixed, rank = Mixed(job.kinds, assume=job.assumed), int(job.variables["RANK"])
    opened.enter_context(mixed.watched_by(rank))
    return init_on(choice_of(mixed, rank), timeout=job.timeout)


def _asserts() -> Any:
    try:
        from devices.testing import _asserts
    except ImportError:
        return None  # this pytest has other private names
    return _asserts


def _raised(error: BaseException, in_pytest: InPytest | None, asserts: Any) -> Outcome:
    headline = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, AssertionError) and str(error).startswith("assert "):
        headline = headline.partition(": ")[2]
    error.__traceback__ = _own(error.__traceback__)
    if in_pytest and asserts:
        details = asserts.told(error, in_pytest.style)
    else:
        details = "".join(traceback.format_exception(error))
    return Outcome("raised", headline=headline, details=details, kind=type(error).__name__)


def _own(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins in what the ranks were given to do."""
    start = trace
    while start is not None and "__tracebackhide__" in start.tb_frame.f_locals:
        start = start.tb_next
    return start or trace
