"""Asking strangers' plugins in child processes, which may die or hang in their stead: all at once, side by side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import IO, Any

from devices.errors import PluginError

DEADLINE = 5.0
"""Seconds that a plugin has to be imported and probed."""

WAITING = 15.0
"""Seconds more that it has if it would run and the machine, which has much else to do, does not let it."""

STARTING = 15.0
"""Seconds that the process that forks the children may take beyond that."""

WITHIN = "_DEVICES_WITHIN_A_PLUGIN"
"""Is set where a plugin is being asked: one that asked for all plugins in turn would have no end."""

# The child finds what its parent finds. PYTHONPATH would do that too, but tools that a plugin starts inherit it.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from devices.roster.survey_child import main
main(sys.argv[2])
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking one plugin.

    Args:
        error: why it cannot be used at all, or "".
        trace: where in its code that was, if it raised.
        claimed: the names of the backends that it would provide, as far as it came.
        hooks: the names of its hooks.
        backends: of each backend, what is plain data.
        results: by question and backend, the answer, still as JSON has it.
        errors: by question and backend, why there is no answer.
    """

    error: str = ""
    trace: str = ""
    claimed: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    backends: tuple[dict[str, Any], ...] = ()
    results: dict[tuple[str, str], Any] = field(default_factory=dict)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        pairs = {name: [[*key, value] for key, value in getattr(self, name).items()] for name in ("results", "errors")}
        plain = {name: getattr(self, name) for name in ("error", "trace", "claimed", "hooks", "backends")}
        return {**plain, **pairs}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Answer:
        """Return the answer that `as_data` was made of."""
        results, errors = (
            {(question, who): value for question, who, value in data[name]} for name in ("results", "errors")
        )
        claimed, hooks, backends = (tuple(data[name]) for name in ("claimed", "hooks", "backends"))
        return cls(data["error"], data["trace"], claimed, hooks, backends, results, errors)


def ask(points: Sequence[EntryPoint], questions: Sequence[str], deadline: float = DEADLINE) -> list[Answer]:
    """Import each plugin in a child process of its own, ask it the questions there, and return its answer.

    Args:
        points: the plugins' entry points.
        questions: of `devices.roster.answers`; none to have the plugins imported only.
        deadline: seconds that each plugin has; one that is late is killed.
    """
    if os.environ.get(WITHIN):
        raise PluginError(
            "it asks what other plugins there are while it is itself being imported or asked; do that in `open`, or "
            "not at all"
        )
    records = _run([points], questions, deadline)[0] if points else []
    if unanswered := [place for place, record in enumerate(records) if record is None]:
        # One of them has ended the process that all are forked by; each by itself shows which.
        alone = _run([[points[place]] for place in unanswered], questions, deadline)
        for place, [record] in zip(unanswered, alone, strict=True):
            records[place] = record
    return [_answer(record, deadline) for record in records]


def _run(
    groups: Sequence[Sequence[EntryPoint]], questions: Sequence[str], deadline: float
) -> list[list[dict[str, Any] | None]]:
    """Return the records of each group of plugins, which have one process each to be forked by; None is no record."""
    with contextlib.ExitStack() as stack:
        started = []
        for points in groups:
            answer: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            started.append((points, answer, _start(points, questions, deadline, answer)))
        found = []
        for points, answer, process in started:
            try:
                if process is not None:
                    process.wait(deadline + WAITING + STARTING)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process is not None and process.returncode is None:
                    _kill(process.pid)
                    process.wait()
            answer.seek(0)
            records = _records(answer.read().decode(errors="replace"), len(points))
            if process is not None and None in records:
                # It was killed itself, and those that wait for the children, who die with them, are still there.
                _kill(process.pid)
            found.append(records)
        return found


def _start(
    points: Sequence[EntryPoint], questions: Sequence[str], deadline: float, answer: IO[bytes]
) -> subprocess.Popen[bytes] | None:
    request = {
        "points": [[point.name, point.value] for point in points],
        "questions": list(questions),
        "deadline": deadline,
        "waiting": WAITING,
    }
    if not sys.executable:
        return None
    path = [entry or str(Path.cwd()) for entry in sys.path]
    command = [sys.executable, "-c", _CHILD, json.dumps(path), json.dumps(request)]
    try:
        # A file, not a pipe, which something that a plugin leaves running would hold open for ever.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, WITHIN: "1"},
        )
    except OSError:
        return None


def _records(text: str, count: int) -> list[dict[str, Any] | None]:
    """Return the record of each plugin from what the process wrote."""
    records: list[dict[str, Any] | None] = [None] * count
    for line in text.splitlines():
        # The last line of a process that was killed may be half a line.
        with contextlib.suppress(ValueError, KeyError):
            said = json.loads(line)
            records[said["plugin"]] = said
    return records


def _kill(process: int) -> None:
    """End a process and whatever it started; their session has its id."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _answer(record: dict[str, Any] | None, deadline: float) -> Answer:
    """Return what the lines of a child say, with what became of it where it did not come to its end."""
    if record is None:
        return Answer(error="the process that was to ask it was killed, or could not be started")
    facts: dict[str, Any] = {}
    results: dict[tuple[str, str], Any] = {}
    errors: dict[tuple[str, str], str] = {}
    doing, step = "its import", None
    is_done = False
    for line in record["lines"]:
        if "doing" in line:
            doing, step = line["doing"], tuple(line["step"])
        elif "result" in line and step is not None:
            results[step] = line["result"]
            step = None
        elif "error" in line and step is not None:
            errors[step] = line["error"]
            step = None
        elif "done" in line:
            is_done = True
        elif "pid" not in line:
            facts.update(line)
    found = Answer(
        facts.get("broken", ""),
        facts.get("trace", ""),
        tuple(facts.get("claimed", ())),
        tuple(facts.get("hooks", ())),
        tuple(facts.get("backends", ())),
        results,
        errors,
    )
    if is_done or found.error:
        return found
    fault = f"{doing}{_ending(record, deadline)}"
    if record["is_late"] and step is not None and step[0] == "probe":
        fault += "; a probe opens no device and imports nothing heavy"
    if step is None:
        return Answer(error=fault, claimed=found.claimed)
    errors[step] = fault
    for backend in found.backends:
        # What would have come after the step that ended it.
        if (each := (step[0], backend["name"])) not in results:
            errors.setdefault(each, f"it was not asked, because {fault}, for backend {step[1]!r}")
    return found


def _ending(record: dict[str, Any], deadline: float) -> str:
    status, last_words = record["status"], record["words"]
    if record["is_endless"]:
        return " gave an answer without end and was killed"
    if record["is_late"]:
        return f" did not finish within {deadline:g} s and was killed"
    if status is None:
        return " ended the process that was to wait for it, and was killed"
    said = f": {last_words}" if last_words else ""
    if status == 0:
        return "'s process ended before it answered"
    if status > 0:
        return f"'s process exited with status {status}{said}"
    try:
        return f"'s process was killed by {signal.Signals(-status).name}{said}"
    except ValueError:
        return f"'s process was killed by signal {-status}{said}"
