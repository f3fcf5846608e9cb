"""The flight recorder: the last calls of verbs that a rank has made, always on, for whoever asks why it stands still.

Each rank has one, a thread rank too. What a call costs here decides what a small message costs, so a record is a plain
list, nothing is formatted before somebody asks, and the line of the program is taken only where records are written to
files (see `files`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal, final

from devices.errors import CollectiveError

if TYPE_CHECKING:
    import torch

    from devices._backend import Group

CAPACITY = 1000
"""How many calls a recorder keeps."""

SHOWN = 5
"""How many of them an error shows."""

Record = list[Any]
"""One call; what it holds, by place:"""

VERB, GROUP, NUMBER, DTYPE, NUMEL, OP, ROOT, LINE, BEGAN, ENDED, ERROR = range(11)

State = Literal["done", "failed", "not finished"]


@final
@dataclass(frozen=True, slots=True)
class FlightRecord:
    """A call of a verb that this rank has made.

    Args:
        verb: its name.
        group: the group's name; a group of a name that another one had before is "name (2)".
        number: which of the group's collective calls it is, from 1; 0 for messages between two ranks.
        dtype: that of what the rank gave, "float32"; "" for a barrier.
        numel: how many elements it gave, or received where it gave nothing; of a scatter, what it got.
        nbytes: the same in bytes.
        op: the reduce op, "" where there is none.
        root: the source, the destination or the peer, a rank of the group; -1 where there is none.
        line: where in the program, "file:line"; "" unless DEVICES_FLIGHT is set.
        began: when, in seconds since 1970.
        seconds: how long it took, until it was waited for if it was asynchronous; None if it has not ended.
        error: what it failed by, "" if it did not.
    """

    verb: str
    group: str
    number: int
    dtype: str
    numel: int
    nbytes: int
    op: str
    root: int
    line: str
    began: float
    seconds: float | None
    error: str

    @property
    def state(self) -> State:
        if self.error:
            return "failed"
        return "not finished" if self.seconds is None else "done"

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        number = f" #{self.number}" if self.number else ""
        what = " ".join(filter(None, (self.op, f"{self.numel} x {self.dtype}" if self.dtype else "")))
        root = f", {'root' if self.number else 'peer'} {self.root}" if self.root >= 0 else ""
        said = ", ".join(filter(None, (f"group {self.group!r}", what))) + root
        return f"{self.verb}{number} ({said}): {self.state}"


@final
class Recorder:
    """What one rank has called, over all its groups.

    Attributes:
        rank: this rank in the world; -1 before it is in any group of more than one.
        size: how many ranks the largest of its groups has.
        changed: is called where what was recorded should be written down, with the reason; None if nobody wants it.
    """

    def __init__(self) -> None:
        self.rank, self.size = -1, 0
        self._names: Counter[str] = Counter()
        self.changed: Callable[[str], None] | None = None
        self.ring: deque[Record] = deque(maxlen=CAPACITY)

    def join(self, group: Group, caller: Callable[[], str] | None = None) -> GroupRecorder:
        """Return what records the calls of `group`.

        Args:
            group: the members.
            caller: finds the line of the program, if that is wanted.
        """
        self.rank = group.ranks[group.rank]
        self.size = max(self.size, group.size)
        self._names[group.name] += 1
        nth = self._names[group.name]
        name = group.name if nth == 1 else f"{group.name} ({nth})"
        return GroupRecorder(self, group, name, caller)

    def records(self) -> list[Record]:
        """Return the records, the oldest first."""
        while True:
            try:
                return list(self.ring)
            except RuntimeError:
                # Another thread has just called something.
                continue


@final
class GroupRecorder:
    """Records the calls of one group on one rank: `begin`, then `end` or `failed`.

    Attributes:
        group: the members.
        is_aborted: whether the group was aborted, which then is what its calls fail by.
    """

    __slots__ = ("_append", "_caller", "_named", "_next", "_recorder", "group", "is_aborted")

    def __init__(self, recorder: Recorder, group: Group, name: str, caller: Callable[[], str] | None) -> None:
        self.group = group
        self.is_aborted = False
        self._recorder = recorder
        # Not the group itself, for a record outlives it.
        self._named = name, group.ranks
        self._caller = caller
        self._append = recorder.ring.append
        self._next = itertools.count(1).__next__

    def begin(self, verb: str, dtype: torch.dtype | None, numel: int, op: str = "", root: int = -1) -> Record:
        """Record that a collective call begins, the group's next."""
        line = None if self._caller is None else self._caller()
        record = [verb, self._named, self._next(), dtype, numel, op, root, line, perf_counter_ns(), 0, None]
        self._append(record)
        return record

    def begin_message(self, verb: str, dtype: torch.dtype | None, numel: int, peer: int) -> Record:
        """Record that a message to or from another rank begins, which the others know nothing of."""
        line = None if self._caller is None else self._caller()
        record = [verb, self._named, 0, dtype, numel, "", peer, line, perf_counter_ns(), 0, None]
        self._append(record)
        return record

    def failed(self, record: Record, error: BaseException) -> None:
        """Record that the call has failed, and let a `CollectiveError` show the end of the recorder."""
        record[ENDED] = perf_counter_ns()
        record[ERROR] = f"{type(error).__name__}: {str(error) or 'no message'}"[:300]
        recorder = self._recorder
        if isinstance(error, CollectiveError) and not any(_TITLE in note for note in getattr(error, "__notes__", ())):
            last = "\n".join(f"  {frozen(each, 0)}" for each in recorder.records()[-SHOWN:])
            error.add_note(f"rank {recorder.rank}, {_TITLE}:\n{last}")
        if recorder.changed is not None:
            recorder.changed("error")

    def closed(self) -> None:
        """Let what is recorded be written down, for the process may end without Python's own end."""
        if self._recorder.changed is not None:
            self._recorder.changed("running")


_TITLE = "its last calls"


def end(record: Record) -> None:
    """Record that the call is done."""
    record[ENDED] = perf_counter_ns()


_process = Recorder()
_here = threading.local()


def _forget() -> None:
    """Let a child that was forked begin anew."""
    global _process
    _process = Recorder()


os.register_at_fork(after_in_child=_forget)


def recorder() -> Recorder:
    """Return the recorder of the rank that this thread is of."""
    found: Recorder = getattr(_here, "recorder", _process)
    return found


def use(own: Recorder) -> None:
    """Let this thread be a rank with a recorder of its own."""
    _here.recorder = own


def flight() -> tuple[FlightRecord, ...]:
    """Return the last 1,000 calls of verbs that this rank has made, the oldest first.

    Calls over a group of one, which send nothing, are not among them.

    >>> import devices, devices.testing
    >>> def last(world):
    ...     devices.barrier()
    ...     return str(devices.flight()[-1])
    >>> devices.testing.run(last, ranks=2)
    ["barrier #1 (group '0'): done", "barrier #1 (group '0'): done"]
    """
    to_unix = time.time_ns() - perf_counter_ns()
    return tuple(frozen(record, to_unix) for record in recorder().records())


def frozen(record: Record, to_unix: int) -> FlightRecord:
    """Return a record as data.

    Args:
        record: the record.
        to_unix: what makes its clock one that counts from 1970, in nanoseconds.
    """
    verb, (group, _), number, dtype, numel, op, root, line, began, ended, error = record
    return FlightRecord(
        verb=verb,
        group=group,
        number=number,
        dtype="" if dtype is None else str(dtype).removeprefix("torch."),
        numel=numel,
        nbytes=0 if dtype is None else numel * dtype.itemsize,
        op=op,
        root=root,
        line=line or "",
        began=(began + to_unix) / 1e9,
        seconds=(ended - began) / 1e9 if ended else None,
        error=error or "",
    )
