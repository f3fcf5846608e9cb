"""`run()`: one function on many ranks, each a thread of this process with a world of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist

from devices import _autoload, _observing, _torch
from devices._backend import Backend, Group
from devices._choice import Choice, choose
from devices._interop import Shared
from devices._world import init
from devices.algorithms.concurrency import use
from devices.algorithms.lines import line_of
from devices.errors import (
    ArgumentError,
    CollectiveTimeoutError,
    RaceError,
    RankFailedError,
    UnsupportedError,
    WorldError,
)
from devices.fabric.communicator import FabricCommunicator
from devices.fabric.interface import Fabric
from devices.fabric.progress import Progress
from devices.meeting.launch import Launch, tell
from devices.recorder import record
from devices.testing._alike import difference
from devices.testing._baton import Baton, Released, Task
from devices.testing._diagnosis import diagnose
from devices.testing._emulation import emulate
from devices.testing._mixed import Mixed, mixed_of
from devices.testing._mixed_backend import MixedBackend
from devices.testing._opened_by_threads import OpenedByThreads
from devices.testing._rank_state import restored
from devices.testing._thread_backend import ThreadBackend
from devices.testing._thread_fabric import Memories, ThreadFabric
from devices.testing._thread_store import ThreadStore
from devices.testing._threads import BatonThreads

T = TypeVar("T")

_one_at_a_time = threading.Lock()


def run(
    fn: Callable[..., T],
    *args: Any,
    ranks: int | Mapping[str, int] | Mixed,
    seed: int = 0,
    schedules: int = 1,
    parallel: bool = False,
    target: str | None = None,
    assume: Mapping[str, str] | None = None,
    backend: str | Backend | None = None,
    timeout: float = 600.0,
) -> list[T]:
    """Call `fn(world, *args)` once per rank, each rank a thread with its own world; return the results in rank order.

    Inside, everything is as in a job of as many processes: `torch.distributed`, meshes, DTensor, DDP, FSDP2,
    messages, new groups, gradients, random numbers and `devices`' own verbs. Tensors are real. One rank runs at a
    time, until it waits in a verb. As under torchrun, torch uses one core for each unless OMP_NUM_THREADS says more.

    Args:
        fn: what each rank does. A tensor in `args` is the same tensor on every rank.
        args: passed on.
        ranks: how many; or how many of each of several targets of the catalogue, as a dict or a `Mixed`.
        seed: decides in which order ranks go on where several can; the same seed gives the same run. With 0 they
            change over only where one must wait, with any other also at some of the calls of verbs.
        schedules: how many seeds to try, from `seed` upwards; results that differ are an error.
        parallel: let the threads run freely, for stress; nothing is repeatable then, random numbers included.
        target: meet the limits of this target of the catalogue, as within `emulate(target)`. Of one that has chips of
            two kinds half of the ranks are of each.
        assume: with ranks of several targets, what is assumed of hardware that nobody has, as `Mixed` takes it.
        backend: open this one over the ranks, which then run at once as with `parallel`; its `thread_ranks` must say
            that it can. Nothing but its own timeout finds a deadlock.
        timeout: seconds after which a rank that does not come back, and waits in no verb, is an error.

    Returns:
        What `fn` returned, by rank; of the first seed.

    Raises:
        DeadlockError: no rank can go on; the message says where each one waits.
        MismatchError: ranks made different calls as one collective.
        RaceError: the results depend on the order of the ranks, or a tensor was changed while a verb read it.
        Exception: what the first rank to raise has raised, with a note that names the rank; the others are ended.

    >>> import torch, devices, devices.testing
    >>> def total(world):
    ...     return devices.all_reduce(torch.tensor(world.rank)).item()
    >>> devices.testing.run(total, ranks=4)
    [6, 6, 6, 6]
    """
    if (mixed := mixed_of(ranks, target, assume)) is not None:
        ranks, target = mixed.size, None
    if not isinstance(ranks, int) or ranks < 1:
        raise ArgumentError(f"ranks={ranks!r}: a run needs at least one rank, as a number or as {{'h100': 2}}")
    if not isinstance(schedules, int) or schedules < 1:
        raise ArgumentError(f"schedules={schedules!r}: at least one order of the ranks is to be tried")
    if mixed is not None and backend is not None:
        raise ArgumentError(f"backend={backend!r}: ranks of several targets, {mixed}, are emulated on none")
    opened = None if backend is None else _choice(backend)
    if not _one_at_a_time.acquire(blocking=False):
        raise WorldError("a run on thread ranks is under way in this process; one ends before another begins")
    try:
        with emulate(target) if target is not None else contextlib.nullcontext():
            return _results(fn, args, ranks, range(seed, seed + schedules), parallel, timeout, opened, mixed)
    finally:
        _one_at_a_time.release()


def run_program(program: Callable[[], object], *, ranks: int, timeout: float = 600.0) -> None:
    """Call `program` once per rank as `run` does, but with no world open: it opens its own, by torch or by us.

    Raises:
        Exception: as of `run`.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise WorldError("a run on thread ranks is under way in this process; one ends before another begins")
    try:
        _Run(lambda _: program(), (), ranks, Baton(0), timeout, opens=False).results()
    finally:
        _one_at_a_time.release()


def _choice(asked: str | Backend) -> Choice:
    """Return the backend that ranks are to be opened on."""
    found = choose(asked) if isinstance(asked, str) else Choice(asked, "given by the program", ())
    if not found.backend.thread_ranks:
        raise UnsupportedError(
            f"backend {found.backend.name!r} does not say that its ranks may be threads (`Backend.thread_ranks`); "
            "devices.testing.run_processes runs it on processes"
        )
    return found


def _results(
    fn: Callable[..., T],
    args: tuple[Any, ...],
    ranks: int,
    seeds: range,
    parallel: bool,
    timeout: float,
    choice: Choice | None,
    mixed: Mixed | None,
) -> list[T]:
    """Return what the first seed gave, which all others must give too."""
    seed, *others = seeds
    parallel = parallel or choice is not None

    def results(seed: int) -> list[T]:
        return _Run(fn, args, ranks, Baton(seed, is_free=parallel), timeout, choice=choice, mixed=mixed).results()

    first = results(seed)
    for other in others:
        again = results(other)
        for rank, (before, now) in enumerate(zip(first, again, strict=True)):
            if not (said := difference(before, now)):
                continue
            who = f"what rank {rank} of {ranks} returns"
            if parallel:
                raise RaceError(f"{who} depends on the order in which ranks run: of two runs it differs{said}")
            if difference(first, results(seed)):
                raise ArgumentError(
                    f"{who} differs{said}, but not by the order of the ranks: with seed={seed} again it differs too. "
                    "Something lasts from run to run, in args or in a global variable; begin it anew in the function"
                )
            raise RaceError(
                f"{who} depends on the order in which ranks run: with seed={seed} and seed={other} it differs{said}; "
                "either seed repeats its run"
            )
    return first


@contextlib.contextmanager
def _closed_at_last() -> Iterator[None]:
    """Close what the program itself has opened and left open."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@final
@dataclass
class _Run:
    """One run with one seed."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    ranks: int
    baton: Baton
    timeout: float
    opens: bool = True
    choice: Choice | None = None
    mixed: Mixed | None = None
    returned: dict[int, Any] = field(default_factory=dict)
    memories: Memories = field(default_factory=Memories)

    def __post_init__(self) -> None:
        self.progresses = [Progress(self.baton.maybe_pause) for _ in range(self.ranks)]
        self.opened = None if self.choice is None else OpenedByThreads(self.choice.backend)

    def results(self) -> list[Any]:
        _autoload.register()
        baton = self.baton
        baton.on_deadlock = partial(diagnose, baton, self.progresses)
        store = ThreadStore(baton, self.progresses)
        watched = contextlib.nullcontext() if self.mixed is None else self.mixed.watched()
        with watched, restored(), _torch.ddp_as_it_was(), _torch.thread_worlds() as begin:
            os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(self.ranks)))
            if "OMP_NUM_THREADS" not in os.environ:
                # As torchrun has it; else each rank's thread gets a team of its own, one for each core.
                torch.set_num_threads(1)
            try:
                tasks = [baton.start(rank, partial(self._rank, rank, store, begin)) for rank in range(self.ranks)]
                baton.run()
                if not self._are_over(tasks):
                    baton.stop(self._late())
            finally:
                self._end()
        if baton.error is not None and not isinstance(baton.error, Released):
            raise self._told(baton.error)
        return [self.returned[rank] for rank in range(self.ranks)]

    def _rank(self, rank: int, store: dist.Store, begin: Callable[[], None]) -> None:
        """Be one rank, on its own thread."""
        begin()
        progress = self.progresses[rank]
        if self.choice is not None and self.opened is not None:
            choice = replace(self.choice, backend=self.opened)
        else:
            use(BatonThreads(self.baton, rank))
            choice = self._chosen(rank, progress)
        record.use(record.Recorder())
        tell(Launch(rank, self.ranks, store, choice, f"{self.ranks} threads of one process"))
        # Backward stays on the rank's thread, where the rank's groups are.
        world_of_its_own = init(timeout=self.timeout) if self.opens else _closed_at_last()
        with torch.autograd.set_multithreading_enabled(False), world_of_its_own as world:
            observer = _observing.observer()
            try:
                with observer.rank(rank) if observer is not None else contextlib.nullcontext():
                    self.returned[rank] = self.fn(world, *self.args)
                progress.finish_all()
            except BaseException as error:
                # Now, for closing the world waits for what is on its way, and perhaps for ever.
                self.baton.stop(error, self.baton.task)
                raise
            finally:
                if (changed := record.recorder().changed) is not None:
                    changed("exit")

    def _chosen(self, rank: int, progress: Progress) -> Choice:
        """Return what a rank whose memory is the run's is opened on."""
        if self.mixed is None:
            backend: Backend = ThreadBackend(self.baton, self.memories, progress)
            return Choice(backend, "ranks are threads of this process", ())

        def share(group: Group) -> Shared:
            def carry(fabric: Fabric, scheduled: bool) -> FabricCommunicator:
                return FabricCommunicator(fabric, group, progress, scheduled=scheduled or self.baton.is_free)

            return Shared(ThreadFabric(self.memories, self.baton, group), carry, by_reference=True)

        backend = MixedBackend(self.mixed, rank, share)
        return Choice(backend, f"a thread of this process, emulated among {self.mixed}", ())

    def _are_over(self, tasks: Sequence[Task]) -> bool:
        """Wait for the ranks, or until one has failed that others wait for in a backend; return whether that came."""
        if self.opened is None:
            return self._join(tasks, self.timeout)
        deadline = time.monotonic() + self.timeout
        while not self._join(tasks, 0.05):
            if self.baton.error is not None:
                return True
            if time.monotonic() > deadline:
                return False
        return True

    def _join(self, tasks: Sequence[Task], seconds: float) -> bool:
        """Wait that long at most for threads to end; return whether they have."""
        deadline = time.monotonic() + seconds
        for task in tasks:
            # A thread's own join with a time limit, interrupted by the user, takes the thread for ended.
            if task.ended.wait(max(0.0, deadline - time.monotonic())) and task.thread is not None:
                task.thread.join()
        return all(task.ended.is_set() for task in tasks)

    def _end(self) -> None:
        """End all threads: by what they wait for, else by an exception out of nowhere, else they are left alone."""
        baton = self.baton
        baton.stop(Released())
        if self.opened is not None and baton.error is not None and not isinstance(baton.error, Released):
            self.opened.abort()
        if not self._join(baton.tasks, 0.5):
            baton.interrupt()
            if not self._join(baton.tasks, 2.0):
                baton.abandon()
                self._join(baton.tasks, 1.0)

    def _late(self) -> CollectiveTimeoutError:
        """Return the error that says which rank keeps the baton, and where it is."""
        running = [seen for seen in self.baton.waiting() if seen.task.is_running and seen.frame is not None]
        told = "\n".join(
            f"rank {seen.task.rank} of {self.ranks} is at {line_of(seen.frame)}:\n"
            f"{''.join(traceback.format_stack(seen.frame))}"
            for seen in running[:4]
        )
        return CollectiveTimeoutError(
            f"{self.timeout:g} s are over and this rank neither returned nor waits in a verb, so it is computing, or "
            f"waits for something that is none of ours:\n{told}"
        )

    def _told(self, error: BaseException) -> BaseException:
        by = self.baton.raised_by
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # They would end the caller's program.
            failed = RankFailedError(f"a rank ended itself by {type(error).__name__}: {error}", by.rank if by else -1)
            failed.__cause__ = error
            error = failed
        who = f"raised by rank {by.rank} of {self.ranks}, a thread rank" if by is not None else "on thread ranks"
        error.add_note(who if self.baton.is_free else f"{who}, seed {self.baton.seed}")
        if left := sorted({task.rank for task in self.baton.tasks if not task.ended.is_set()}):
            error.add_note(f"threads of these ranks could not be ended and go on: {', '.join(map(str, left))}")
        return error
