"""Asking a backend whether its hardware is here: directly, or in a child process that may die or hang in its stead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from devices._backend import Backend, Probe
from devices.errors import PluginError

DEADLINE = 5.0
"""Seconds that a child has, interpreter start and import of the plugin included."""

# The child finds what its parent finds. PYTHONPATH would do that too, but tools that the probe starts inherit it.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from devices._probe_child import main
main(*sys.argv[2:])
"""


def probe_here(backend: Backend) -> Probe:
    """Return `backend.probe()`, whatever it raises being a `PluginError`."""
    try:
        found: object = backend.probe()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"backend {backend.name!r}: its probe raised {type(error).__name__}: {error}; it should return "
            "Probe(present=False, reason=...)"
        ) from error
    if not isinstance(found, Probe):
        raise PluginError(f"backend {backend.name!r}: its probe returned {found!r}, not a Probe")
    return found


def probe_in_child(entry_point: EntryPoint, name: str, deadline: float = DEADLINE) -> Probe:
    """Return the probe of backend `name`, loaded and asked in a child process.

    Raises:
        PluginError: the child died, came late, or could not load or ask the backend.
    """
    path = [entry or str(Path.cwd()) for entry in sys.path]
    command = [sys.executable, "-c", _CHILD, json.dumps(path), entry_point.name, entry_point.value, name]
    # Files, not pipes: something that the probe leaves running would hold a pipe open for ever.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as noise:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=answer, stderr=noise, start_new_session=True
            )
        except OSError as error:
            raise PluginError(f"backend {name!r}: no child process could be started to probe it: {error}") from error
        try:
            status = child.wait(deadline)
        except subprocess.TimeoutExpired:
            raise PluginError(
                f"backend {name!r}: its probe did not finish within {deadline:g} s and was killed; a probe opens no "
                "device and imports nothing heavy"
            ) from None
        finally:
            if child.returncode is None:
                _kill_session(child)
        noise.seek(0)
        last_words = noise.read().decode(errors="replace").strip().splitlines()[-1:]
        if status != 0:
            raise PluginError(f"backend {name!r}: its probe's process {_ending(status)}{_colon(last_words)}")
        answer.seek(0)
        try:
            said = json.load(answer)
        except ValueError:
            raise PluginError(f"backend {name!r}: its probe's process ended before it answered") from None
        return decode(said)


def encode(outcome: Probe | PluginError) -> dict[str, Any]:
    """Return what came of a probe, for JSON to carry to another process."""
    if isinstance(outcome, PluginError):
        return {"error": str(outcome)}
    return {"present": bool(outcome.present), "reason": str(outcome.reason)}


def decode(said: dict[str, Any]) -> Probe:
    """Return the probe that `encode` was given, or raise the `PluginError`."""
    if "error" in said:
        raise PluginError(said["error"])
    return Probe(present=said["present"], reason=said["reason"])


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    """End the child, which was not waited for yet, and whatever it started; their session has the child's id."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(status: int) -> str:
    if status > 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _colon(words: list[str]) -> str:
    return f": {words[0]}" if words else ""
