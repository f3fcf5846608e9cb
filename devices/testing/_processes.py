"""`run_processes()`: one function on many ranks, each a process, forked from a server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import re
import secrets
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from devices.errors import ArgumentError, RankFailedError
from devices.testing._process_child import DUMP, InPytest, Job, Outcome, end_with_parent, main
from devices.testing._sending import Parcel, pack

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

T = TypeVar("T")

_PRELOAD = (
    "torch.distributed.tensor.parallel",
    "torch.distributed.fsdp",
    "devices._collectives",
    "devices._placement",
    "devices._world",
    "devices.testing._process_child",
)

_GRACE = 0.2
"""Seconds in which others may fail too, once a rank has."""

_SHOWN = 4000
"""Of what a rank printed, how much an error shows, in characters."""


def run_processes(
    fn: Callable[..., T],
    ranks: int | Mapping[str, int],
    *args: Any,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    backend: str = "auto",
    assume: Mapping[str, str] | None = None,
) -> list[T]:
    """Call `fn(world, *args)` once per rank, each rank a process; return the results in rank order.

    Each rank has torchrun's variables and a world that is open, and closed when `fn` returns. The processes are forked
    from a server, the forkserver of `multiprocessing`, that starts with the first run and has torch loaded: eight
    ranks start in a fraction of a second. What ranks print is printed here once all have returned.

    The function goes to the processes by its name, the arguments and the results by pickle, through pipes that only
    this process and those that it starts have.

    Args:
        fn: what each rank does; written at the top level of a module.
        ranks: how many; or how many of each of several targets of the catalogue, which are emulated.
        args: passed on, a copy to each rank.
        timeout: seconds after which a rank that has not returned is an error, which shows where it is.
        env: variables that ranks have beside those of this process and torchrun's.
        backend: what the world is opened on, as in `devices.init`.
        assume: with ranks of several targets, what is assumed of hardware that nobody has, as `Mixed` takes it.

    Raises:
        RankFailedError: a rank raised, died or did not finish; the message has its traceback and what ranks printed.
            The others are ended.
        ArgumentError: the function or an argument cannot be sent to a process.
    """
    __tracebackhide__ = True
    if not isinstance(ranks, Mapping):
        if assume:
            raise ArgumentError(f"assume={dict(assume)!r}: nothing is assumed of these ranks; name targets by ranks=")
        return values(run_outcomes(pack(fn, args), ranks, timeout=timeout, env=env, backend=backend))
    from devices.testing._mixed import Mixed

    if backend != "auto":
        raise ArgumentError(f"backend={backend!r}: ranks of several targets, {dict(ranks)!r}, are emulated on none")
    mixed = Mixed(ranks, assume=assume)
    outcomes = run_outcomes(
        pack(fn, args), mixed.size, timeout=timeout, env=env, kinds=dict(ranks), assumed=mixed.assumed
    )
    return values(outcomes)


def warm_up() -> None:
    """Start the server that ranks are forked from, if it is not running, without waiting for it."""
    _context()
    multiprocessing.forkserver.ensure_running()


def values(outcomes: Outcomes) -> list[Any]:
    """Return what the ranks returned.

    Raises:
        RankFailedError: one of them did not return.
    """
    __tracebackhide__ = True
    if (error := outcomes.error()) is not None:
        raise error
    found = []
    for rank, outcome in enumerate(outcomes.by_rank):
        try:
            found.append(pickle.loads(outcome.value))  # noqa: S301 - it comes from a process that this one started
        except Exception as error:
            said = f"rank {rank} of {len(outcomes.by_rank)}: what it returned cannot be read here: {error}"
            raise RankFailedError(said, rank) from error
    return found


@final
class Outcomes:
    """What became of the ranks of one run.

    Args:
        by_rank: each rank's outcome.
        failed: the ranks that raised, died or were late, that first which is to be told first.
        printed: what each rank printed.
    """

    def __init__(self, by_rank: Sequence[Outcome], failed: Sequence[int], printed: Sequence[str]) -> None:
        self.by_rank = by_rank
        self.failed = failed
        self._printed = printed

    def error(self) -> RankFailedError | None:
        """Return the error that tells what failed; None if nothing did."""
        if not self.failed:
            return None
        first, *others = self.failed
        outcome = self.by_rank[first]
        if outcome.how == "late":
            details = "\n".join(_alike({rank: self.by_rank[rank].details for rank in self.failed}))
            more = f"; nor did {_named(others)}" if others else ""
        else:
            details, more = outcome.details, ""
        parts = [f"rank {first} of {len(self.by_rank)}: {outcome.headline}{more}", details]
        if others and outcome.how != "late":
            parts.append(
                "\n".join(f"rank {rank} too: {_first_line(self.by_rank[rank].headline)}" for rank in sorted(others))
            )
        parts += [self.told(rank, _SHOWN) for rank in [first, *self._but(first)]]
        return RankFailedError("\n\n".join(part.strip("\n") for part in parts if part), first, details)

    def told(self, rank: int, limit: int = 0) -> str:
        """Return what a rank printed, with a headline that names it, or nothing if it printed nothing."""
        printed = self._printed[rank]
        shown = printed if not limit or len(printed) <= limit else f"...{printed[-limit:]}"
        return f"rank {rank} of {len(self.by_rank)} printed:\n{shown}" if shown.strip() else ""

    def _but(self, one: int) -> list[int]:
        return [rank for rank in range(len(self.by_rank)) if rank != one]


def run_outcomes(
    parcel: Parcel,
    ranks: int,
    *,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    backend: str = "auto",
    in_pytest: InPytest | None = None,
    mortal: Collection[int] = (),
    kinds: Mapping[str, int] | None = None,
    assumed: Mapping[str, str] | None = None,
) -> Outcomes:
    """Run what `parcel` holds on `ranks` processes, all of which have ended when this returns or raises.

    That a rank of `mortal` dies is no failure, and the others go on. `kinds` and `assumed` say of what targets the
    ranks are, if they are of several.
    """
    from devices.meeting.rendezvous import serve

    if not isinstance(ranks, int) or ranks < 1:
        raise ArgumentError(f"ranks={ranks!r}: a run needs at least one rank, as a number or as {{'h100': 2}}")
    if timeout <= 0:
        raise ArgumentError(f"timeout must be positive, got {timeout!r}")
    # The store is here, as torchrun's agent has it, so no port is chosen before it is bound.
    store = serve("127.0.0.1", 0)
    # Whoever else finds the port is no rank of this run.
    secret = {"DEVICES_SECRET": secrets.token_hex(32)}
    shared = {**secret, **os.environ, **_torchrun(ranks, store.port), **(env or {})}
    context = _context()
    started: list[_Rank] = []
    try:
        for rank in range(ranks):
            own = {name: str(rank) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")}
            # A verb never gives up before the run's time is over, so that stacks are told, of all ranks.
            variables, folder = {**shared, **own}, str(Path.cwd())
            job = Job(variables, folder, backend, timeout + 60, parcel, in_pytest, kinds, assumed or {})
            started.append(_Rank(context, job))
        failed = _collect(started, timeout, mortal)
        if not failed:
            _leave(started)
    finally:
        for each in started:
            each.end_all()
    outcomes = Outcomes([each.outcome for each in started], failed, [each.printed() for each in started])
    for each in started:
        each.forget()
    if not failed:
        for rank in range(ranks):
            if told := outcomes.told(rank):
                print(told, end="" if told.endswith("\n") else "\n")
    return outcomes


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # Does nothing once the server runs, which may be another's; ranks then load what it lacks, and start later.
    here = [name for name in ("devices.testing.pytest", "devices.testing._asserts") if "pytest" in sys.modules]
    context.set_forkserver_preload([*_PRELOAD, *here])
    return context


def _torchrun(ranks: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun would set, those of single ranks left out."""
    size = str(ranks)
    return {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "ROLE_WORLD_SIZE": size,
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "devices",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }


@final
class _Rank:
    """One rank's process, seen from here."""

    def __init__(self, context: ForkServerContext, job: Job) -> None:
        self.outcome = Outcome("ended")
        self.end, there = context.Pipe()
        # Files without a name, so that nothing is left behind, and nobody has to read while a rank prints.
        self._printed, self._stacks = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        # A connection is what `multiprocessing` lets a descriptor travel as.
        files = [
            Connection(os.dup(file.fileno()), readable=False, writable=True) for file in (self._printed, self._stacks)
        ]
        self._process = context.Process(target=main, args=(there, *files, job))
        try:
            self._process.start()
        finally:
            for each in (there, *files):
                each.close()

    def receive(self) -> None:
        """Take the outcome, which has come, or the end of the process."""
        try:
            self.outcome = pickle.loads(self.end.recv_bytes())  # noqa: S301 - from a process that this one started
        except (EOFError, OSError):
            self._process.join(1)
            self.outcome = Outcome("died", headline=_ending(self._process.exitcode), details=_tidy(_read(self._stacks)))

    def ask_for_stacks(self) -> None:
        """Make the process write its stacks down and end."""
        assert self._process.pid is not None
        os.kill(self._process.pid, DUMP)

    def take_stacks(self, deadline: float, timeout: float) -> None:
        """Take the stacks that were asked for."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        stacks = _read(self._stacks) or "(it did not tell where it is)"
        self.outcome = Outcome("late", headline=f"did not finish within {timeout:g} s", details=_tidy(stacks))

    def left(self, seconds: float) -> bool:
        """Return whether the process ended by itself within `seconds`."""
        self._process.join(seconds)
        return not self._process.is_alive()

    def end_all(self) -> None:
        """End the process, and what it started, whatever they do."""
        if self._process.pid is None:
            return
        for kill in (os.killpg, os.kill):  # it may have no session of its own yet
            try:
                kill(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self._process.join()

    def printed(self) -> str:
        """Return what the process and those that it started printed."""
        return _read(self._printed)

    def forget(self) -> None:
        """Give back what is held for the process, which has ended."""
        self.end.close()
        self._printed.close()
        self._stacks.close()
        self._process.close()


def _collect(ranks: Sequence[_Rank], timeout: float, mortal: Collection[int]) -> list[int]:
    """Wait for the outcomes; return the ranks that failed, that first which is to be told first."""
    waiting = {each.end: rank for rank, each in enumerate(ranks)}
    failed: list[int] = []
    deadline = time.monotonic() + timeout
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = [waiting.pop(end) for end in wait(list(waiting), left) if isinstance(end, Connection)]
        for rank in sorted(ready):
            ranks[rank].receive()
            how = ranks[rank].outcome.how
            if how != "returned" and not (how == "died" and rank in mortal):
                deadline = min(deadline, time.monotonic() + _GRACE)
                failed.append(rank)
    # What others raise since a rank died comes about as early as the news of its death.
    failed.sort(key=lambda rank: ranks[rank].outcome.how != "died")
    if waiting and not failed:
        failed = sorted(waiting.values())
        for rank in failed:
            ranks[rank].ask_for_stacks()
        deadline = time.monotonic() + 2
        for rank in failed:
            ranks[rank].take_stacks(deadline, timeout)
    return failed


def _leave(ranks: Iterable[_Rank]) -> None:
    """Let ranks that have returned end in their own way, for at most two seconds."""
    deadline = time.monotonic() + 2
    for each in ranks:
        each.left(max(0.0, deadline - time.monotonic()))


def _ending(status: int | None) -> str:
    if status is None:
        return "closed the pipe that its result was to come through"
    if status >= 0:
        return f"exited with status {status} before it returned"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _read(file: Any) -> str:
    file.seek(0)
    found: bytes = file.read()
    return found.decode(errors="replace")


def _tidy(stacks: str) -> str:
    """Return the stacks of the program's own threads, without addresses, so that those of two ranks may be alike."""
    blocks = re.sub(r"0x[0-9a-f]+ ?", "", stacks.partition("\nExtension modules:")[0]).split("\n\n")
    told = [block.splitlines() for block in blocks if f" in {end_with_parent.__name__}\n" not in block]
    ours = (f"{os.sep}multiprocessing{os.sep}", main.__code__.co_filename, '"<string>"')
    return "\n\n".join("\n".join(line for line in lines if not any(at in line for at in ours)) for lines in told)


def _alike(texts: Mapping[int, str]) -> list[str]:
    """Return each text once, below the ranks that it is of."""
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(rank)
    # Where most ranks wait for a few, the few are what one looks for.
    return [f"{_named(which)}:\n{text}\n" for text, which in sorted(ranks.items(), key=lambda item: len(item[1]))]


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _first_line(text: str) -> str:
    return textwrap.shorten(text.partition("\n")[0], 200)
