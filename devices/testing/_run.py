"""`run()`: one function on many ranks, each a thread of this process with a world of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist

from devices import _autoload, _observing, _torch
from devices._launch import Launch, tell
from devices._registry import Choice
from devices._world import init
from devices.algorithms.concurrency import use
from devices.errors import ArgumentError, CollectiveTimeoutError, RaceError, WorldError
from devices.fabric.progress import Progress
from devices.testing._alike import difference
from devices.testing._baton import Baton, Released
from devices.testing._diagnosis import diagnose
from devices.testing._emulation import emulate
from devices.testing._rank_state import restored
from devices.testing._thread_backend import ThreadBackend
from devices.testing._thread_fabric import Memories
from devices.testing._thread_store import ThreadStore
from devices.testing._threads import BatonThreads

T = TypeVar("T")

_one_at_a_time = threading.Lock()


def run(
    fn: Callable[..., T],
    *args: Any,
    ranks: int,
    seed: int = 0,
    schedules: int = 1,
    parallel: bool = False,
    target: str | None = None,
    timeout: float = 600.0,
) -> list[T]:
    """Call `fn(world, *args)` once per rank, each rank a thread with its own world; return the results in rank order.

    Inside, everything is as in a job of as many processes: `torch.distributed`, meshes, DTensor, DDP, FSDP2,
    messages, new groups, gradients, random numbers and `devices`' own verbs. Tensors are real. One rank runs at a
    time, until it waits in a verb.

    Args:
        fn: what each rank does. A tensor in `args` is the same tensor on every rank.
        args: passed on.
        ranks: how many.
        seed: decides in which order ranks go on where several can; the same seed gives the same run. With 0 they
            change over only where one must wait, with any other also at some of the calls of verbs.
        schedules: how many seeds to try, from `seed` upwards; results that differ are an error.
        parallel: let the threads run freely, for stress; nothing is repeatable then, random numbers included.
        target: meet the limits of this target of the catalogue, as within `emulate(target)`.
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
    if ranks < 1:
        raise ArgumentError(f"ranks={ranks!r}: a run needs at least one rank")
    if schedules < 1:
        raise ArgumentError(f"schedules={schedules!r}: at least one order of the ranks is to be tried")
    if not _one_at_a_time.acquire(blocking=False):
        raise WorldError("a run on thread ranks is under way in this process; one ends before another begins")
    try:
        with emulate(target) if target is not None else contextlib.nullcontext():
            return _results(fn, args, ranks, range(seed, seed + schedules), parallel, timeout)
    finally:
        _one_at_a_time.release()


def _results(
    fn: Callable[..., T], args: tuple[Any, ...], ranks: int, seeds: range, parallel: bool, timeout: float
) -> list[T]:
    """Return what the first seed gave, which all others must give too."""
    seed, *others = seeds
    first = _Run(fn, args, ranks, Baton(seed, is_free=parallel), timeout).results()
    for other in others:
        again = _Run(fn, args, ranks, Baton(other, is_free=parallel), timeout).results()
        for rank, (before, now) in enumerate(zip(first, again, strict=True)):
            if said := difference(before, now):
                raise RaceError(
                    f"what rank {rank} of {ranks} returns depends on the order in which ranks run: with "
                    f"seed={seed} and seed={other} it differs{said}; either seed repeats its run"
                )
    return first


@final
@dataclass
class _Run:
    """One run with one seed."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    ranks: int
    baton: Baton
    timeout: float
    returned: dict[int, Any] = field(default_factory=dict)
    memories: Memories = field(default_factory=Memories)

    def results(self) -> list[Any]:
        _autoload.register()
        baton = self.baton
        baton.on_deadlock = partial(diagnose, baton, self.ranks)
        store = ThreadStore(baton)
        with restored(), _torch.thread_worlds() as begin:
            os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(self.ranks)))
            tasks = [baton.start(rank, partial(self._rank, rank, store, begin)) for rank in range(self.ranks)]
            baton.run()
            self._join([task.thread for task in tasks if task.thread is not None])
            baton.stop(Released())
            self._join([task.thread for task in baton.tasks if task.thread is not None])
        if baton.error is not None and not isinstance(baton.error, Released):
            raise self._told(baton.error)
        return [self.returned[rank] for rank in range(self.ranks)]

    def _rank(self, rank: int, store: dist.Store, begin: Callable[[], None]) -> None:
        """Be one rank, on its own thread."""
        begin()
        use(BatonThreads(self.baton, rank))
        progress = Progress()
        backend = ThreadBackend(self.baton, self.memories, progress)
        choice = Choice(backend, "ranks are threads of this process", ())
        tell(Launch(rank, self.ranks, store, choice, f"{self.ranks} threads of one process"))
        # Backward stays on the rank's thread, where the rank's groups are.
        with torch.autograd.set_multithreading_enabled(False), init(timeout=self.timeout) as world:
            observer = _observing.observer()
            with observer.rank(rank) if observer is not None else contextlib.nullcontext():
                self.returned[rank] = self.fn(world, *self.args)
            progress.finish_all()

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + self.timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise self._late()

    def _late(self) -> CollectiveTimeoutError:
        """Return the error that says which rank keeps the baton, and where it is."""
        running = [(task, frame) for task, frame in self.baton.waiting() if task.is_running and frame is not None]
        told = "\n".join(
            f"rank {task.rank} of {self.ranks}:\n{''.join(traceback.format_stack(frame))}"
            for task, frame in running[:4]
        )
        error = CollectiveTimeoutError(
            f"{self.timeout:g} s are over and this rank neither returned nor waits in a verb, so it is computing, or "
            f"waits for something that is none of ours:\n{told}"
        )
        self.baton.stop(error)
        return error

    def _told(self, error: BaseException) -> BaseException:
        by = self.baton.raised_by
        if by is not None:
            seeded = "" if self.baton.is_free else f", seed {self.baton.seed}"
            error.add_note(f"raised by rank {by.rank} of {self.ranks}, a thread rank{seeded}")
        return error
