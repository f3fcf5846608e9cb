"""What `devices doctor` finds out: all facts, as plain data that JSON can carry."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from devices import __version__, _autoload, _choice, _registry, catalogue
from devices._backend import Group
from devices._store import Store
from devices.errors import DevicesError
from devices.roster.installed import unreadable
from devices.roster.plugins import Plugin

SCHEMA = 1
"""Rises when a field of the report changes its meaning or goes; new fields may come at any time."""

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def examine() -> dict[str, Any]:
    """Return the report. Nothing that is broken here stops it; `report["cpu"]["works"]` is the verdict."""
    torch = _examine_torch()  # first, before anything else brings torch in and registers our group
    _registry.available()  # all plugins at once, not one after another
    plugins = [_examine_plugin(plugin) for plugin in _registry.plugins()]
    contradictions = _registry.contradictions()  # before a stranger may be loaded here, where it could end us
    auto = _examine_auto()
    return {
        "schema": SCHEMA,
        "versions": {
            "devices": __version__,
            "torch": _version("torch"),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "torch": torch,
        "plugins": plugins,
        "auto": auto,
        "cpu": _examine_cpu(),
        "switches": _switches(),
        "problems": _problems(torch, plugins, auto, contradictions),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _examine_torch() -> dict[str, Any]:
    """Return whether torch can be imported and knows the process group "devices"."""
    try:
        import torch.distributed as dist

        registered = dist.is_available() and hasattr(dist.Backend, "DEVICES")
    except (Exception, SystemExit) as error:
        return {"imports": False, "registered": False, "error": f"{type(error).__name__}: {error}"}
    return {"imports": True, "registered": registered, "error": str(_autoload.error) if _autoload.error else None}


def _examine_plugin(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "hooks": list(plugin.hooks),
        "allowed": plugin.allowed,
        "error": str(plugin.error) if plugin.error else None,
        "backends": [_examine_backend(name) for name in plugin.backends],
    }


def _examine_backend(name: str) -> dict[str, Any]:
    facts = _registry.facts(name)
    devices = _registry.devices_of(name) if _registry.outcome(name).present else ()
    error = None
    try:
        _registry.probe(name)
    except DevicesError as caught:
        error = str(caught)
    outcome = _registry.outcome(name)
    return {
        "name": name,
        "device_type": facts.device_type,
        "priority": facts.priority,
        "present": outcome.present,
        "reason": outcome.reason,
        "error": error,
        "verified": facts.verified,
        "devices": [asdict(device) | {"label": str(device)} for device in devices],
    }


def _examine_auto() -> dict[str, Any]:
    try:
        choice = _choice.choose("auto")
    except DevicesError as error:
        return {"backend": None, "reason": str(error)}
    return {"backend": choice.backend.name, "reason": choice.reason}


def _examine_cpu() -> dict[str, Any]:
    """Open a group of one on the CPU, which needs no launcher, and close it."""
    try:
        from torch.distributed import HashStore

        backend = _choice.choose("cpu").backend
        device = backend.devices()[0]
        backend.capabilities(device)
        group = Group((0,), 0, device, Store(HashStore()), timedelta(seconds=30), "doctor")
        communicator = backend.open(group)
        communicator.close()
    except (Exception, SystemExit) as error:
        return {"works": False, "reason": f"{type(error).__name__}: {error}"}
    return {"works": True, "reason": "a group of one was opened"}


def _switches() -> list[dict[str, str]]:
    meanings = {
        "DEVICES_BACKEND": "what `auto` means",
        "DEVICES_DOMAIN": "ranks of one host in which it differs are as on different hosts",
        "DEVICES_LINK_BANDWIDTH": "what this rank's way to other hosts carries, in bytes per second, or `measure`",
        "DEVICES_FABRIC": "off: the processes of a host share no memory, and gloo carries everything",
        "DEVICES_PLUGINS": "the only plugins that are loaded",
        "DEVICES_CALIBRATION": "the file that `devices calibrate` writes, and predictions for this host read",
        "DEVICES_FLIGHT": "the folder that each rank's flight recorder writes a file to",
        "DEVICES_ASSUME": "what is assumed of speculative hardware, where ranks of it are emulated",
        "DEVICES_OBSERVERS": "plugins whose observers hear of every collective",
        "DEVICES_SECRET": "what ranks prove to each other that they know, before anything is sent",
        "DEVICES_NO_PICKLE": "1 makes our process group refuse torch's object collectives, which pickle",
        _AUTOLOAD: (
            'all but 1 keeps torch from registering "devices" by itself; `import devices` before '
            '`init_process_group("devices")` does it instead'
        ),
    }
    # A plugin may have some of its own, and a name may be misspelt.
    strangers = sorted(name for name in os.environ if name.startswith("DEVICES_") and name not in meanings)
    meanings |= dict.fromkeys(strangers, "none of the switches of `devices`: one of a plugin, or misspelt")
    return [
        {"name": name, "value": "(not shown)" if "SECRET" in name else os.environ[name], "meaning": meaning}
        for name, meaning in meanings.items()
        if name in os.environ
    ]


def _problems(
    torch: dict[str, Any], plugins: list[dict[str, Any]], auto: dict[str, Any], contradictions: Sequence[str]
) -> list[str]:
    problems = [plugin["error"] for plugin in plugins if plugin["error"]]
    problems += [
        f"{backend['error']} (it is of {plugin['distribution']} {plugin['version']})"
        for plugin in plugins
        for backend in plugin["backends"]
        if backend["error"]
    ]
    problems += [str(error) for error in (*_registry.link_errors(), *catalogue.faults())]
    problems += contradictions
    problems += _registry.unmatched_names()
    problems += unreadable()
    if auto["backend"] is None and auto["reason"].startswith("DEVICES_BACKEND="):
        problems.append(auto["reason"])
    if not torch["imports"]:
        problems.append(f"torch cannot be imported: {torch['error']}")
    elif torch["error"]:
        problems.append(f'torch could not be told of the process group "devices": {torch["error"]}')
    elif not torch["registered"] and os.environ.get(_AUTOLOAD, "1") == "1":
        problems.append(
            'torch did not register the process group "devices" by itself; is the distribution `devices` installed?'
        )
    return problems
