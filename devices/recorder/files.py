"""Writes a rank's flight recorder to a file, where DEVICES_FLIGHT names a folder for it."""

from __future__ import annotations

import atexit
import json
import os
import platform
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, final
from weakref import WeakKeyDictionary

from devices._backend import Group
from devices.errors import WorldError
from devices.recorder.record import BEGAN, ENDED, GROUP, GroupRecorder, Record, Recorder, frozen, recorder

FORMAT = "devices flight 1"
"""What a file says that it is."""

SECONDS = 1.0
"""How often a file is brought up to date: a rank that is killed, or ended by a signal, leaves one that is so old."""


def join(group: Group, caller: Callable[[], str]) -> GroupRecorder:
    """Return what records the calls of `group` on this rank, and keep its file where one is wanted.

    Args:
        group: the members.
        caller: finds the line of the program.

    Raises:
        WorldError: the folder that DEVICES_FLIGHT names cannot be written to.
    """
    found, folder = recorder(), os.environ.get("DEVICES_FLIGHT")
    if not folder:
        return found.join(group)
    joined = found.join(group, caller)
    if (writer := _writers.get(found)) is None:
        writer = _writers[found] = _Writer(found, Path(folder))
        found.changed = writer.try_to_write
        _keep_writing()
    try:
        writer.write("running")
    except OSError as error:
        raise WorldError(
            f"{group}: DEVICES_FLIGHT={folder}: the flight recorder cannot be written there: {error}"
        ) from error
    return joined


@final
class _Writer:
    """Keeps the file of one recorder, replaced whole each time.

    Args:
        recorder: what is written.
        folder: where; made if it is not there.
    """

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        # The recorder refers to its writer.
        self._recorder = weakref.ref(recorder)
        # A program may go elsewhere.
        self._folder = folder.absolute()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._written: tuple[str, object] | None = None
        self._has_failed = False

    def write(self, why: str) -> None:
        """Write the file if it is not up to date; `why` is "running", "error" or "exit"."""
        found = self._recorder()
        # A child that was forked is no rank.
        if found is None or os.getpid() != self._process:
            return
        with self._lock:
            records = found.records()
            calls = found.rank, found.size, [(record[BEGAN], record[ENDED]) for record in records]
            # A reason says more than that it runs.
            if self._written is None or calls != self._written[1] or why not in ("running", self._written[0]):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _replace(self._folder / f"rank-{found.rank}.json", json.dumps(_as_data(found, records, why)))
                self._written = why, calls

    def try_to_write(self, why: str) -> None:
        """Write the file; where that fails, say so once and let the program go on."""
        try:
            self.write(why)
        except OSError as error:
            if not self._has_failed:
                print(f"devices: DEVICES_FLIGHT={self._folder}: {error}", file=sys.stderr)
            self._has_failed = True


def _as_data(recorder: Recorder, records: list[Record], why: str) -> dict[str, Any]:
    to_unix = time.time_ns() - perf_counter_ns()
    return {
        "format": FORMAT,
        "rank": recorder.rank,
        "size": recorder.size,
        "host": platform.node(),
        "process": os.getpid(),
        "why": why,
        "written": time.time(),
        "groups": dict(record[GROUP] for record in records),
        "calls": [frozen(record, to_unix).as_data() for record in records],
    }


def _replace(path: Path, text: str) -> None:
    """Let `path` hold `text`, for this user alone; who reads it sees all or nothing of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    # One that was left by a process of this number would not be made anew, and so have any mode.
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


_writers: WeakKeyDictionary[Recorder, _Writer] = WeakKeyDictionary()
_thread: threading.Thread | None = None


def _keep_writing() -> None:
    """Bring the files up to date from now on, on a thread: a rank that waits for its peers runs no line of its own."""
    global _thread
    if _thread is None:
        atexit.register(_write_all, "exit")
    # A fork leaves the thread behind.
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_write_for_ever, name="devices flight", daemon=True)
        _thread.start()


def _write_for_ever() -> None:
    while True:
        time.sleep(SECONDS)
        _write_all("running")


def _write_all(why: str) -> None:
    for writer in list(_writers.values()):
        writer.try_to_write(why)
