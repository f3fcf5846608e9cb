"""The processes of a group's ranks: told apart for certain, and seen when they end."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakValueDictionary


@final
@dataclass(frozen=True, slots=True)
class Process:
    """One process of this host; `started` (clock ticks since boot) tells it from a later one of its number."""

    pid: int
    started: int

    @staticmethod
    def mine() -> Process:
        pid = os.getpid()
        return Process(pid, _started(pid))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Process:
        return Process(int(data["pid"]), int(data["started"]))

    def to_json(self) -> dict[str, int]:
        return {"pid": self.pid, "started": self.started}


class _Watched:
    """A descriptor of a process that tells when it ends; closed with the last reference."""

    def __init__(self, process: Process) -> None:
        self.descriptor = os.pidfd_open(process.pid)
        try:
            # A descriptor holds on to the process; that it is the right one is looked at once it does.
            if _started(process.pid) != process.started:
                raise ProcessLookupError(f"process {process.pid} is another one by now")
        except BaseException:
            os.close(self.descriptor)
            raise

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


_watched: WeakValueDictionary[Process, _Watched] = WeakValueDictionary()
_lock = threading.Lock()


def _watch(process: Process) -> _Watched:
    """Return the one descriptor that this process has of another: groups share it."""
    with _lock:
        found = _watched.get(process)
        if found is None:
            _watched[process] = found = _Watched(process)
        return found


@final
class Peers:
    """The processes of a group's other ranks, watched.

    Args:
        processes: by the ranks of the group, this one's left out.
    """

    def __init__(self, processes: Mapping[int, Process]) -> None:
        self._dead: set[int] = set()
        self._watched: dict[int, _Watched] = {}
        self._by_descriptor: dict[int, int] = {}
        self._poll = select.poll()
        self._lock = threading.Lock()
        for rank, process in processes.items():
            try:
                watched = _watch(process)
            except (ProcessLookupError, FileNotFoundError):
                self._dead.add(rank)
                continue
            self._watched[rank] = watched
            self._by_descriptor[watched.descriptor] = rank
            self._poll.register(watched.descriptor, select.POLLIN)

    def dead(self) -> frozenset[int]:
        """Return which ranks' processes have ended."""
        # Python lets one thread at a time ask.
        with self._lock:
            for descriptor, _ in self._poll.poll(0):
                rank = self._by_descriptor.pop(descriptor)
                self._poll.unregister(descriptor)
                del self._watched[rank]
                self._dead.add(rank)
            return frozenset(self._dead)


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - this is asked for each peer of each group
        # The name, in parentheses, may hold spaces; after it the 20th field is the time of the start.
        return int(file.read().rpartition(b")")[2].split()[19])
