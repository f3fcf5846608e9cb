"""A call in which a group's members wait for each other where nothing of ours sees them, watched from beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, final

from devices.errors import CollectiveError, CollectiveTimeoutError

if TYPE_CHECKING:
    from devices._group import Group

_LOOK = 0.05
"""Seconds between two looks at the other members."""

_MOMENT = 0.5
"""Seconds within which a member whose connections have broken is seen to have died, or says what went wrong."""

_GONE = "the store that its ranks meet by is gone"

T = TypeVar("T")


def watched(group: Group, call: Callable[[], T], what: str, give_up: Callable[[T], object] | None = None) -> T:
    """Return what `call` does, as `Group.watched` says."""
    # First: a call whose others cannot be watched does not begin.
    others = _Others(group, what)
    running = _Running(call, f"devices {group.name} {what}", give_up)
    deadline = time.monotonic() + group.timeout.total_seconds()
    try:
        running.start()
        while not running.is_over(_LOOK):
            if died := others.died():
                # It may have done its part before.
                if running.is_over(_MOMENT) and running.error is None:
                    break
                raise died from running.error
            if failed := others.failed():
                raise failed
            if time.monotonic() > deadline:
                raise others.late()
        if running.error is not None:
            if lost := others.soon_lost():
                raise lost from running.error
            raise running.error
        _all_through(others, deadline)
    except BaseException as error:
        others.tell(error)
        running.leave(error)
        raise
    return running.result()


def _all_through(others: _Others, deadline: float) -> None:
    """Return once the calls of all members have returned: who goes on before that hears of no failure any more."""
    are_through, pause = others.are_through(1), 0.001
    while not are_through:
        error = others.died() or others.failed()
        # One that was through has done its part, whatever has become of it since.
        are_through = others.are_through()
        if are_through:
            return
        if error:
            raise error
        if time.monotonic() > deadline:
            raise others.late()
        time.sleep(pause)
        pause = min(2 * pause, _LOOK)


@final
class _Running(Generic[T]):
    """A call on a thread of its own; the thread stays behind if the call does not end.

    Args:
        call: what is called.
        name: the thread's.
        give_up: called once with what the call returned, if that is left.
    """

    def __init__(self, call: Callable[[], T], name: str, give_up: Callable[[T], object] | None) -> None:
        self._call = call
        self._give_up = give_up
        self._results: list[T] = []
        self._is_left = False
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        self._ended = threading.Event()
        # Python does not wait for it as it ends.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin the call."""
        self._thread.start()

    def _run(self) -> None:
        try:
            result = self._call()
            with self._lock:
                is_late = self._is_left
                self._results.append(result)
        except BaseException as error:
            self.error = error
            is_late = False
        finally:
            self._ended.set()
        if is_late and self._give_up is not None:
            self._give_up(result)

    def leave(self, why: BaseException) -> None:
        """Give up what the call has returned; or let its thread do so, once it returns."""
        with self._lock:
            self._is_left = True
            has_returned = bool(self._results)
        if not has_returned or self._give_up is None:
            return
        try:
            self._give_up(self.result())
        except Exception as fault:
            why.add_note(f"nor could what was opened be given up: {fault}")

    def is_over(self, seconds: float) -> bool:
        """Return whether it has ended, or does within so many seconds."""
        return self._ended.wait(seconds)

    def result(self) -> T:
        """Return what it returned."""
        return self._results[0]


@final
class _Others:
    """What is known of the other members meanwhile: those of this host that die, and what any of them says.

    The store is asked by a connection of its own: the call may be waiting in the other one, which holds up all there.
    """

    def __init__(self, group: Group, what: str) -> None:
        self._group, self._what = group, what
        apart = group.store.apart()
        self._store = None
        if apart is None:
            return
        try:
            # Another try must not hear of what went wrong in this one. A rank that did not come to this one hears of it
            # in its next, and meets the others in the one after.
            tried = apart.add(f"watched/{what}/tries/{group.rank}", 1)
            self._store = apart.under(f"watched/{what}/{tried}")
            self._store.set(f"begun/{group.rank}", True)
        except Exception as error:
            # It may be with a member that has died.
            raise self.soon_lost() or self._failed(f"{_GONE}: {error}") from error

    def died(self) -> CollectiveError | None:
        """Return the error of a member of this host that has died; None if none has."""
        lost = self._group.store.lost()
        return self._failed(lost) if lost else None

    def are_through(self, more: int = 0) -> bool:
        """Return whether the calls of all have returned, of so many more here; True where nobody can be heard."""
        if self._store is None:
            return True
        try:
            return self._store.add("through", more) >= self._group.size
        except Exception as error:
            # It may be with the member that has died.
            raise self.soon_lost() or self._failed(f"{_GONE}: {error}") from error

    def failed(self) -> CollectiveError | None:
        """Return the error of what another member says that went wrong; None if none says anything."""
        if self._store is None:
            return None
        try:
            if not self._store.torch.check(["failed"]):
                # What this group is a part of may have failed, in which nobody comes here any more.
                ended = self._store.ended()
                return self._failed(ended) if ended else None
            said = self._store.get("failed")
        except Exception as error:
            # It may be with the member that has died.
            return self.soon_lost() or self._failed(f"{_GONE}: {error}")
        kind = CollectiveTimeoutError if said["late"] else CollectiveError
        return kind(f"{self._group}: {self._what} failed: {said['text']}, as rank {said['rank']} found")

    def soon_lost(self) -> CollectiveError | None:
        """Return the error of a member that has died, or does in a moment: its connections break before it ends."""
        deadline = time.monotonic() + _MOMENT
        while not (error := self.died()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return error

    def late(self) -> CollectiveTimeoutError:
        """Return the error of a call that did not end in time."""
        group, missing = self._group, self._missing()
        who = f"ranks {missing} did not begin it" if missing else "all ranks have begun it"
        seconds = group.timeout.total_seconds()
        return CollectiveTimeoutError(f"{group}: {self._what} was not done within {seconds:g} s; {who}")

    def _missing(self) -> list[int]:
        """Return the ranks of the world of the members that have not begun, as far as the store says."""
        if self._store is None:
            return []
        store, ranks = self._store.torch, self._group.ranks
        return [rank for at, rank in enumerate(ranks) if not store.check([f"begun/{at}"])]

    def tell(self, error: BaseException) -> None:
        """Let the others know that this rank has failed; whoever cannot be told finds out by the timeout."""
        if self._store is None:
            return
        text = str(error).removeprefix(f"{self._group}: {self._what} failed: ") or type(error).__name__
        said = {
            "rank": self._group.ranks[self._group.rank],
            "text": text,
            "late": isinstance(error, CollectiveTimeoutError),
        }
        try:
            if not self._store.torch.check(["failed"]):
                self._store.set("failed", said)
        except Exception as lost:
            error.add_note(f"nor could the other ranks be told of it: {lost}")

    def _failed(self, cause: str) -> CollectiveError:
        return CollectiveError(f"{self._group}: {self._what} failed: {cause}")
