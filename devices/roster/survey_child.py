"""The process that asks strangers' plugins: it forks a child for each, waits for all of them, and says what each said.

It has no threads and holds nothing: a fork of it is a fresh interpreter, without the time that one takes to start. Each
child has a parent of its own, a fork too, which waits for it: that is whom it hits if it ends its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from devices.errors import PluginError
from devices.roster.answers import steps
from devices.roster.plugin import load, words

MOST = 1 << 20
"""Bytes that a child may answer with."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_LAST = 4096
_LOOK_AGAIN = 0.02


def main(text: str) -> None:
    """Ask as the request says, and write a line of JSON for each plugin, on stdout."""
    request = json.loads(text)
    # What the plugins print goes elsewhere, so that stdout holds the answer alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answer, flush=True)

    with selectors.DefaultSelector() as selector:
        children = []
        for place, (name, value) in enumerate(request["points"]):
            children.append(_fork(place, EntryPoint(name, value, "devices"), request["questions"], selector))
        _wait(children, request["deadline"], request["waiting"], selector, say)
    # Exit handlers, of which a `sitecustomize` may have set some, are not waited for.
    os._exit(0)


@dataclass
class _Child:
    """A plugin that is being asked.

    Args:
        place: which one.
        parent: the process that waits for its process.
        begun: when.
        said: what it has answered so far; its first line has its process's id.
        noise: the end of what it has printed.
        status: what its parent says of its end.
    """

    place: int
    parent: int
    begun: float
    said: bytearray = field(default_factory=bytearray)
    noise: bytearray = field(default_factory=bytearray)
    status: bytearray = field(default_factory=bytearray)

    @property
    def process(self) -> int | None:
        """Its process's id, which is that of its session too; None before it is known."""
        line, ended, _ = bytes(self.said[:64]).partition(b"\n")
        return json.loads(line)["pid"] if ended else None

    def end_session(self) -> None:
        """Kill it with all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError, ValueError, KeyError, TypeError):
            if process := self.process:
                os.killpg(process, signal.SIGKILL)

    def end(self) -> None:
        """Kill it with all that it has started, and its parent, which may have been stopped."""
        self.end_session()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.parent, signal.SIGKILL)


def _fork(place: int, entry_point: EntryPoint, questions: Sequence[str], selector: selectors.BaseSelector) -> _Child:
    pipes = os.pipe(), os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with contextlib.suppress(BaseException):
            _be_parent(entry_point, questions, [writing for _, writing in pipes])
        os._exit(0)
    child = _Child(place, parent, time.monotonic())
    for (reading, writing), kept in zip(pipes, (child.said, child.noise, child.status), strict=True):
        os.close(writing)
        os.set_blocking(reading, False)
        selector.register(reading, selectors.EVENT_READ, (child, kept))
    return child


def _wait(
    children: Sequence[_Child],
    deadline: float,
    waiting: float,
    selector: selectors.BaseSelector,
    say: Callable[..., None],
) -> None:
    running = list(children)
    while running:
        for key, _ in selector.select(_LOOK_AGAIN):
            child, kept = key.data
            _read(selector, key.fd, child, kept)
        for child in list(running):
            over = time.monotonic() - child.begun - deadline
            is_late = over > 0 and over > min(waiting, _waited(child))
            is_endless = len(child.said) > MOST
            if is_late or is_endless:
                child.end()
            parent, _ = os.waitpid(child.parent, 0 if is_late or is_endless else os.WNOHANG)
            if not parent:
                continue
            running.remove(child)
            for key in [key for key in selector.get_map().values() if key.data[0] is child]:
                _read(selector, key.fd, child, key.data[1])
                if key.fd in selector.get_map():
                    selector.unregister(key.fd)
                    os.close(key.fd)
            if not child.status:
                # It has ended its parent, and need not have died with it on every system.
                child.end_session()
            say(
                plugin=child.place,
                lines=_lines(child.said),
                status=None if is_late or is_endless or not child.status else int(child.status),
                is_endless=is_endless,
                is_late=is_late,
                words=_last_words(child.noise),
            )


def _waited(child: _Child) -> float:
    """Return how many seconds a child would have run, and had to wait for a processor; 0 where nobody counts."""
    try:
        return int(Path(f"/proc/{child.process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, LookupError, TypeError):
        return 0.0


def _read(selector: selectors.BaseSelector, reading: int, child: _Child, kept: bytearray) -> None:
    """Keep what a child has written so far; of what it prints, the end."""
    for _ in range(64):
        try:
            data = os.read(reading, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            selector.unregister(reading)
            os.close(reading)
            return
        if kept is not child.said or len(kept) <= MOST:
            kept += data
        if kept is child.noise:
            del kept[:-_LAST]


def _lines(said: bytearray) -> list[dict[str, Any]]:
    lines = []
    for line in said.decode(errors="replace").splitlines():
        # A child that was killed may have written half a line.
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                lines.append(found)
    return lines


def _last_words(noise: bytearray) -> str:
    lines = noise.decode(errors="replace").strip().splitlines()
    return lines[-1][-500:] if lines else ""


def _be_parent(entry_point: EntryPoint, questions: Sequence[str], pipes: Sequence[int]) -> None:
    """Be the process that waits for a child, and says how it ended."""
    answer, noise, status = pipes
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(status)
            _be(entry_point, questions, answer, noise)
        os._exit(0)
    os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _be(entry_point: EntryPoint, questions: Sequence[str], answer: int, noise: int) -> None:
    """Be the child that asks one plugin."""
    os.setsid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.dup2(noise, 1)
    os.dup2(noise, 2)

    def say(**line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(answer, data) :]

    say(pid=os.getpid())
    claimed: list[str] = []
    try:
        plugin = load(entry_point, claimed)
    except BaseException as error:
        is_ours = isinstance(error, PluginError) and error.__cause__ is None
        say(
            broken=str(error) if is_ours else words(error), trace=_trace(error), claimed=[str(name) for name in claimed]
        )
        return
    facts = [
        {each: getattr(backend, each) for each in ("name", "device_type", "priority", "verified")}
        for backend in plugin.backends
    ]
    say(hooks=plugin.hooks, claimed=[str(name) for name in claimed], backends=facts)
    for question in questions:
        for name, doing, ask in steps(plugin, question):
            say(doing=doing, step=[question, name])
            try:
                result = ask()
            except PluginError as error:
                say(error=str(error))
            except BaseException as error:
                say(error=f"{doing} raised {words(error)}")
            else:
                say(result=result)
    say(done=True)


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-8192:]
    except BaseException:
        return ""
