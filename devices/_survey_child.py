"""The process that asks strangers' plugins: it forks a child for each, waits for all of them, and says what each said.

It has no threads and holds nothing: a fork of it is a fresh interpreter, without the time that one takes to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from devices._answers import steps
from devices._plugin import load, words
from devices.errors import PluginError

MOST = 1 << 20
"""Bytes that a child may answer with."""

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
            child = _fork(place, EntryPoint(name, value, "devices"), request["questions"], selector)
            say(plugin=place, begun=child.process)
            children.append(child)
        _wait(children, request["deadline"], selector, say)
    # Exit handlers, of which a `sitecustomize` may have set some, are not waited for.
    os._exit(0)


@dataclass
class _Child:
    place: int
    process: int
    begun: float
    said: bytearray = field(default_factory=bytearray)
    noise: bytearray = field(default_factory=bytearray)


def _fork(place: int, entry_point: EntryPoint, questions: Sequence[str], selector: selectors.BaseSelector) -> _Child:
    pipes = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            _be(entry_point, questions, pipes[0][1], pipes[1][1])
        os._exit(0)
    child = _Child(place, process, time.monotonic())
    for (reading, writing), kept in zip(pipes, (child.said, child.noise), strict=True):
        os.close(writing)
        os.set_blocking(reading, False)
        selector.register(reading, selectors.EVENT_READ, (child, kept))
    return child


def _wait(
    children: Sequence[_Child], deadline: float, selector: selectors.BaseSelector, say: Callable[..., None]
) -> None:
    running = list(children)
    while running:
        for key, _ in selector.select(_LOOK_AGAIN):
            child, kept = key.data
            _read(selector, key.fd, child, kept)
        for child in list(running):
            is_late = time.monotonic() - child.begun > deadline
            is_endless = len(child.said) > MOST
            if is_late or is_endless:
                # Before it is waited for, so that its id is still its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process, signal.SIGKILL)
            process, status = os.waitpid(child.process, 0 if is_late or is_endless else os.WNOHANG)
            if not process:
                continue
            running.remove(child)
            for key in [key for key in selector.get_map().values() if key.data[0] is child]:
                _read(selector, key.fd, child, key.data[1])
                if key.fd in selector.get_map():
                    selector.unregister(key.fd)
                    os.close(key.fd)
            say(
                plugin=child.place,
                lines=_lines(child.said),
                status=None if is_late or is_endless else os.waitstatus_to_exitcode(status),
                is_endless=is_endless,
                words=_last_words(child.noise),
            )


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


def _be(entry_point: EntryPoint, questions: Sequence[str], answer: int, noise: int) -> None:
    """Be the child that asks one plugin."""
    os.setsid()
    os.dup2(noise, 1)
    os.dup2(noise, 2)

    def say(**line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(answer, data) :]

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
