"""The baton: of all thread ranks, the one that holds it runs, until it waits for something that only others can do.

Who gets it next is drawn from a seed, so a run can be repeated. When nobody can take it, no rank will ever go on:
a deadlock is found at the moment at which it happens, not by a timeout.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from types import FrameType
from typing import Any, NamedTuple, final

from devices.testing._rank_state import RankState

_POLLS = 5000
"""How often a rank may look for something in vain, nothing happening meanwhile, before it counts as waiting for it."""

_IDLE = 100, 0.5
"""How often, and for how many seconds, a rank may do so that mostly sleeps."""


class Released(BaseException):
    """Ends a rank whose run is over; not an Exception, so that the program does not handle it."""


@final
class Task:
    """A thread of a rank: the rank's own, or one that works for it.

    Args:
        rank: the rank that it belongs to.
        is_helper: whether it works for its rank; a helper that waits for work stops nobody.
    """

    def __init__(self, rank: int, is_helper: bool) -> None:
        self.rank = rank
        self.is_helper = is_helper
        self.thread: threading.Thread | None = None
        self.waits_for: object = None
        self.is_over = False
        self.ended = threading.Event()
        self.go = threading.Lock()
        self.go.acquire()
        self.listens: tuple[Hashable, ...] = ()
        self.look: Callable[[], tuple[Hashable, ...]] = tuple
        self.is_running = False
        # How often it has looked in vain since event number `event`, when it began to (on the clock, and in its own
        # time), and whether that is long enough to say that it waits.
        self.event, self.polls, self.began, self.is_stuck = -1, 0, (0.0, 0.0), False


class Seen(NamedTuple):
    """Where a task is: the frame, and the error that it handles there, if it does."""

    task: Task
    frame: FrameType | None
    error: BaseException | None


@final
class Baton:
    """Who runs.

    Args:
        seed: decides who goes on where several can. 0 changes over only where a rank must wait; any other also
            lets others go first at some of the calls of verbs.
        is_free: let all run at once, as their threads may; nothing is then repeatable.
        on_deadlock: called when nobody can go on; returns the error that ends the run.
    """

    def __init__(self, seed: int, *, is_free: bool = False) -> None:
        self.is_free = is_free
        self.seed = seed
        self.on_deadlock: Callable[[], BaseException] = RuntimeError
        self.error: BaseException | None = None
        self.raised_by: Task | None = None
        self.tasks: list[Task] = []
        self._draw = random.Random(seed)
        # Ranks that run at once share the process's generators, whatever is done.
        self._states: dict[int, RankState] | None = None if is_free else {}
        self._ready: list[Task] = []
        self._listeners: dict[Hashable, list[Task]] = {}
        self._running = 0
        self._event = 0
        # Guards all of the above; while only one rank runs nobody ever waits for it. A thread that holds it may collect
        # garbage, and what ends then wakes somebody.
        self._lock = threading.RLock()
        self._here = threading.local()

    # Life of a thread.

    def start(self, rank: int, function: Callable[[], object], *, is_helper: bool = False) -> Task:
        """Make a thread of `rank` that will run `function` when it gets the baton; `run` or a rank lets it begin."""
        task = Task(rank, is_helper)

        def body() -> None:
            self._here.task = task
            task.go.acquire()
            try:
                if self.error is None:
                    self._enter(task)
                    function()
            except Released:
                pass
            except BaseException as error:
                self.stop(error, task)
            finally:
                self._leave(task)
                task.ended.set()

        name = f"rank {rank}" + (" helper" if is_helper else "")
        task.thread = threading.Thread(target=body, name=name, daemon=True)
        if self._states is not None and rank not in self._states:
            self._states[rank] = RankState(rank, {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        with self._lock:
            if is_helper:
                # A run may have thousands of them, one after the other.
                self.tasks = [each for each in self.tasks if not (each.is_helper and each.ended.is_set())]
            self.tasks.append(task)
            if self.is_free and self._running:
                self._make_ready(task)
            else:
                self._ready.append(task)
        task.thread.start()
        return task

    def run(self) -> None:
        """Let the ranks go."""
        with self._lock:
            self._hand_on()

    def _leave(self, task: Task) -> None:
        with self._lock:
            task.is_over = True
            self._wake(("over", id(task)))
            self._give_away(task)

    @property
    def task(self) -> Task | None:
        """The task that this thread is; None if it is none of ours."""
        return getattr(self._here, "task", None)

    # Waiting.

    def wait(self, look: Callable[[], tuple[Hashable, ...]], about: object) -> None:
        """Give the baton away until `look` returns nothing; it returns what to listen for.

        Raises:
            Released: the run is over.
        """
        if self.is_free and self.task is None:
            self._poll(look)
            return
        task = self._mine()
        with self._lock:
            self._check()
            keys = look()
            if not keys:
                return
            task.waits_for, task.look = about, look
            self._listen(task, keys)
            self._give_away(task)
        self._sleep(task)
        task.waits_for = None

    def _poll(self, look: Callable[[], tuple[Hashable, ...]]) -> None:
        """Wait on a thread that is none of ours: of a backend that its ranks are opened on, say."""
        while look():
            self._check()
            time.sleep(0.0005)

    def pause(self, about: object) -> None:
        """Let others go first, if any can; between two looks at something that has not come."""
        task = self._mine()
        with self._lock:
            self._check()
            task.waits_for = about
            self._count_poll(task)
            if task.is_stuck and all(
                each.is_over or each.listens or (each.is_stuck and each.event == self._event) for each in self.tasks
            ):
                self._end(self.on_deadlock())
                raise Released
            gives_away = bool(self._ready)
            if gives_away:
                self._ready.append(task)
                self._give_away(task)
        if gives_away:
            self._sleep(task)

    def maybe_pause(self) -> None:
        """Let others go first, or not, as the seed says."""
        if self.seed and not self.is_free and self.task is not None:
            with self._lock:
                self._event += 1
                if not self._ready or self._draw.random() < 0.5:
                    return
            self.pause("its turn")

    def wake(self, key: Hashable) -> None:
        """Look again for all who listen for `key`."""
        self._event += 1
        # Where all run at once, one may be about to listen.
        if self._listeners or self.is_free:
            with self._lock:
                self._wake(key)

    def join(self, task: Task) -> None:
        """Wait until `task` is over."""
        self.wait(lambda: () if task.is_over else (("over", id(task)),), f"the end of a thread of rank {task.rank}")

    def stop(self, error: BaseException, by: Task | None = None) -> None:
        """End the run with `error`, raised by a task; a second one is not looked at."""
        with self._lock:
            if self.error is None:
                self.raised_by = by
            self._end(error)

    def interrupt(self) -> None:
        """Raise `Released`, at the next line of Python, in the ranks that run on although the run is over."""
        for task in self.tasks:
            if task.is_running and not task.is_over and task.thread is not None and task.thread.ident is not None:
                ident = ctypes.c_ulong(task.thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Released))

    def abandon(self) -> None:
        """Let all others end beside a rank that cannot be interrupted."""
        with self._lock:
            self.is_free = True
            self._hand_on()

    # How it is done; all with the lock held.

    def _count_poll(self, task: Task) -> None:
        if task.event != self._event:
            task.event, task.polls, task.is_stuck = self._event, 0, False
            task.began = time.monotonic(), time.thread_time()
        task.polls += 1
        polls, seconds = _IDLE
        if task.polls > _POLLS:
            task.is_stuck = True
        elif task.polls > polls and (past := time.monotonic() - task.began[0]) > seconds:
            task.is_stuck = time.thread_time() - task.began[1] < past / 3

    def _mine(self) -> Task:
        task = self.task
        if task is None:
            raise RuntimeError(
                "a verb of a thread rank was called on a thread that is none of its; call it on the rank's own thread"
            )
        return task

    def _check(self) -> None:
        if self.error is not None:
            raise Released

    def _listen(self, task: Task, keys: Iterable[Hashable]) -> None:
        task.listens = tuple(dict.fromkeys(keys))
        for key in task.listens:
            self._listeners.setdefault(key, []).append(task)

    def _wake(self, key: Hashable) -> None:
        for task in self._listeners.pop(key, ()):
            for other in task.listens:
                if other != key and (listening := self._listeners.get(other)):
                    listening.remove(task)
                    if not listening:
                        del self._listeners[other]
            task.listens = ()
            # Looking for it here spares a change over to a task that would only wait on.
            if keys := task.look():
                self._listen(task, keys)
            else:
                self._make_ready(task)

    def _make_ready(self, task: Task) -> None:
        if self.is_free:
            self._let_go(task)
        else:
            self._ready.append(task)

    def _let_go(self, task: Task) -> None:
        self._running += 1
        task.is_running = True
        task.go.release()

    def _give_away(self, task: Task) -> None:
        self._keep(task)
        self._running -= 1
        task.is_running = False
        self._hand_on()

    def _enter(self, task: Task) -> None:
        if self._states is not None:
            self._states[task.rank].enter()

    def _keep(self, task: Task) -> None:
        if self._states is not None:
            self._states[task.rank].leave()

    def _hand_on(self) -> None:
        """Let the next one run; all, where they are free."""
        if self.is_free:
            while self._ready:
                self._let_go(self._ready.pop())
        elif self._ready and not self._running:
            place = self._draw.randrange(len(self._ready)) if len(self._ready) > 1 else 0
            self._ready[place], self._ready[-1] = self._ready[-1], self._ready[place]
            self._let_go(self._ready.pop())
        if not self._running and self.error is None and not all(each.is_over or each.is_helper for each in self.tasks):
            self._end(self.on_deadlock())

    def _end(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error
        self._listeners.clear()
        waiting = [task for task in self.tasks if not task.is_over and task.listens]
        for task in waiting:
            task.listens = ()
            self._make_ready(task)
        if not self._running:
            self._hand_on()

    def _sleep(self, task: Task) -> None:
        task.go.acquire()
        self._enter(task)
        if self.error is not None:
            raise Released

    def waiting(self) -> list[Seen]:
        """Return the tasks that are not over, and where each one is."""
        # CPython, before 3.12 at least, holds a lock while it lists these, which the end of a `threading.local` takes:
        # a garbage collection that ends one meanwhile would stop the process for good (gh-106883).
        collects = gc.isenabled()
        gc.disable()
        try:
            frames: dict[int, Any] = sys._current_frames()
            errors: dict[int, Any] = sys._current_exceptions()
        finally:
            if collects:
                gc.enable()
        found = []
        for task in self.tasks:
            if not task.is_over:
                ident = (task.thread.ident if task.thread else None) or 0
                error = errors.get(ident)
                # Python 3.11 has it as `sys.exc_info` does.
                error = error[1] if isinstance(error, tuple) else error
                found.append(Seen(task, frames.get(ident), error))
        return found
