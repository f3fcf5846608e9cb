"""The child process that loads one plugin, probes one of its backends and answers on stdout, as JSON."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint

from devices._backend import Probe
from devices._probe import encode, probe_here
from devices._registry import load_alone
from devices.errors import PluginError


def main(entry_name: str, entry_value: str, backend: str) -> None:
    """Answer whether `backend`, of the plugin at that entry point, is present."""
    # What the plugin prints goes to stderr, so that stdout holds the answer alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found: Probe | PluginError
    try:
        found = probe_here(load_alone(EntryPoint(entry_name, entry_value, "devices"), backend))
    except PluginError as error:
        found = error
    json.dump(encode(found), answer)
    answer.close()
    # The question is answered: threads and exit handlers of the plugin are not waited for.
    os._exit(0)
