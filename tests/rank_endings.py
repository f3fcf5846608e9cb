"""Ranks as processes that may fail in any way: how each one ended, none of them ended because another had failed.

They are forked from a server that has torch loaded, and end as a program of their own would: what nobody caught is
printed by `sys.excepthook`, and what the program left to be done at its end is done.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed.tensor.parallel", "devices._collectives", "devices._world"])

_DUMP = signal.SIGRTMAX


class NotOpenedError(AssertionError):
    """A world did not open in time."""


@dataclass
class Ending:
    """How one rank ended.

    Args:
        how: "returned", "raised", "exited", "killed by SIGKILL" and the like, or "hung".
        value: what it returned.
        kinds: the classes of what it raised, the nearest first.
        said: the text of what it raised.
        at: when that was, by time.monotonic, which the processes of a host share.
        opened: whether its world was open before.
        where: the stacks of one that hung, the traceback of one that raised.
        printed: what it printed.
        status: the exit status.
    """

    how: str = "hung"
    value: Any = None
    kinds: tuple[str, ...] = ()
    said: str = ""
    at: float = 0.0
    opened: bool = False
    where: str = ""
    printed: str = ""
    status: int | None = None

    def __str__(self) -> str:
        parts = [self.how, *(self.kinds[:1]), self.said or (repr(self.value) if self.how == "returned" else "")]
        text = ": ".join(part for part in parts if part)
        more = f"\n{self.where}" if self.how == "hung" else ""
        printed = f"\nprinted:\n{self.printed}" if self.printed.strip() and self.how != "raised" else ""
        return text + more + printed


@dataclass
class Plan:
    """What the ranks of a run do.

    Args:
        body: called as `body(world, *args)`, or as `body(*args)` where `opens` is false.
        args: passed on.
        timeout: how long a verb may wait.
        prepare: called with the world before it counts as open; what it returns comes before `args`.
        opens: whether the world is opened for the body.
        stays: whether a rank that has ended stays until all others have: its end is then no news to them.
        variables: what a rank's environment has besides; a value of None takes a variable away.
    """

    body: Callable[..., Any]
    args: tuple[Any, ...] = ()
    timeout: float = 30.0
    opens: bool = True
    stays: bool = True
    prepare: Callable[..., Any] | None = None
    variables: Callable[[int], Mapping[str, str | None]] = field(default=lambda rank: {})


class Running:
    """The processes of one run.

    Args:
        ranks: how many.
        plan: what they do.
        agent: whether the ranks' store is here, as torchrun's agent has it.
    """

    def __init__(self, ranks: int, plan: Plan, *, agent: bool = True) -> None:
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if agent else None
        self.endings = [Ending() for _ in range(ranks)]
        self.processes: list[Any] = []
        self.pids: list[int] = []
        self._ends: list[Connection] = []
        self._files: list[tuple[Any, Any]] = []
        shared: dict[str, str | None] = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        if self._store is not None:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
            shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        try:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **plan.variables(rank)}
                self._start({**os.environ, **shared, "OMP_NUM_THREADS": "1", **own}, plan)
        except BaseException:
            self.end()
            raise

    def _start(self, variables: Mapping[str, str | None], plan: Plan) -> None:
        here, there = _context.Pipe()
        # Without a name, so that nothing is left behind.
        files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        passed = [Connection(os.dup(file.fileno()), readable=False, writable=True) for file in files]
        told = {name: value for name, value in variables.items() if value is not None}
        job = (plan.body, plan.args, plan.timeout, plan.opens, plan.stays, plan.prepare)
        process = _context.Process(target=_rank, args=(there, *passed, told, job), daemon=True)
        process.start()
        for each in (there, *passed):
            each.close()
        self.processes.append(process)
        self.pids.append(process.pid)
        self._ends.append(here)
        self._files.append(files)

    def wait_opened(self, seconds: float) -> None:
        """Wait until all worlds are open.

        Raises:
            NotOpenedError: one is not in time.
        """
        self._until(lambda: all(ending.opened or ending.how != "hung" for ending in self.endings), seconds)
        if late := [rank for rank, ending in enumerate(self.endings) if not ending.opened]:
            raise NotOpenedError(f"the worlds of ranks {late} did not open: {list(map(str, self.endings))}")

    def wait_ended(self, seconds: float, *, but: Sequence[int] = ()) -> list[Ending]:
        """Return how each rank ended; one that has not after `seconds` hangs.

        Args:
            seconds: how long to wait.
            but: ranks that are not waited for.
        """
        self._until(lambda: all(end.how != "hung" for rank, end in enumerate(self.endings) if rank not in but), seconds)
        return self.endings

    def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds() and (left := deadline - time.monotonic()) > 0:
            ends = {end: rank for rank, end in enumerate(self._ends) if self.endings[rank].how == "hung"}
            for end in wait(list(ends), left):
                assert isinstance(end, Connection)
                self._hear(ends[end])

    def _hear(self, rank: int) -> None:
        ending = self.endings[rank]
        try:
            told = self._ends[rank].recv()
        except (EOFError, OSError):
            self.processes[rank].join(5)
            status = self.processes[rank].exitcode
            ending.at = time.monotonic()
            ending.how = "exited" if status is None or status >= 0 else f"killed by {signal.Signals(-status).name}"
            return
        for name, value in told.items():
            setattr(ending, name, value)

    def end(self) -> None:
        """End what is left, whatever it does, having taken down where it is."""
        hung = [rank for rank in range(len(self.processes)) if self.endings[rank].how == "hung"]
        for rank in hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, _DUMP)
        for end in self._ends:
            end.close()
        for rank, process in enumerate(self.processes):
            process.join(2 if rank in hung else 10)
            if process.is_alive():
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(process.pid, signal.SIGKILL)
                process.join()
            printed, stacks = self._files[rank]
            ending = self.endings[rank]
            ending.status, ending.printed = process.exitcode, _read(printed)
            ending.where = ending.where or _read(stacks)
            process.close()
        for file in (file for files in self._files for file in files):
            file.close()
        self._store = None


def run(ranks: int, plan: Plan, *, seconds: float = 90.0, but: Sequence[int] = (), agent: bool = True) -> list[Ending]:
    """Return how each of `ranks` ranks ended. A world that did not even open is tried once more.

    Args:
        ranks: how many.
        plan: what they do.
        seconds: after which a rank hangs.
        but: ranks that are not waited for.
        agent: whether the ranks' store is here.
    """
    for again in (True, False):
        running = Running(ranks, plan, agent=agent)
        try:
            if plan.opens:
                running.wait_opened(60)
            running.wait_ended(seconds, but=but)
        except NotOpenedError:
            if not again:
                raise
            continue
        finally:
            running.end()
        return running.endings
    raise AssertionError


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _rank(end: Connection, printed: Connection, stacks: Connection, told: Mapping[str, str], job: Any) -> None:
    """Be a rank."""
    import torch

    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(told)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        os.dup2(printed.fileno(), descriptor)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable(stacks.fileno())
    faulthandler.register(_DUMP, stacks.fileno(), all_threads=True, chain=True)
    # A server that had run an op on two threads would leave its children a pool that hangs them.
    torch.set_num_threads(1)
    body, args, timeout, opens, stays, prepare = job
    status = 0
    try:
        value = _opened(end, body, args, timeout, prepare) if opens else body(*args)
        end.send({"how": "returned", "value": value, "at": time.monotonic()})
    except BaseException as error:
        at = time.monotonic()
        status = (error.code if isinstance(error.code, int) else 1) if isinstance(error, SystemExit) else 1
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        where = traceback.format_exc()
        end.send({"how": "raised", "kinds": kinds, "said": _text(error), "at": at, "where": where})
        if stays:
            _wait_for_the_end(end)
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
    if stays:
        _wait_for_the_end(end)
    # As the interpreter ends, which a process of multiprocessing does not.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _opened(
    end: Connection, body: Callable[..., Any], args: tuple[Any, ...], timeout: float, prepare: Callable[..., Any] | None
) -> Any:
    import devices

    world = devices.init(timeout=timeout)
    if prepare is not None:
        args = (prepare(world), *args)
    end.send({"opened": True})
    return body(world, *args)


def _text(error: BaseException) -> str:
    """Return all that is printed of an error besides the traceback."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def _wait_for_the_end(end: Connection) -> None:
    """Wait until the process that started this one is through."""
    with contextlib.suppress(EOFError, OSError):
        end.recv()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
