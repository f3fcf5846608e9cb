"""The hooks of a plugin. All are named `devices_...`, so that one module may serve several hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pluggy

from devices._backend import Backend, Link
from devices._observer import Observer

hookspec = pluggy.HookspecMarker("devices")
hookimpl = pluggy.HookimplMarker("devices")


@hookspec
def devices_backend() -> Backend | Sequence[Backend]:  # type: ignore[empty-body]
    """Return the plugin's backend, or a list of them."""


@hookspec
def devices_targets() -> Path | str | Mapping[str, str]:  # type: ignore[empty-body]
    """Return a folder of targets for the catalogue, or what one would hold: the text of each file by its name."""


@hookspec
def devices_links() -> Mapping[str, Sequence[Link]]:  # type: ignore[empty-body]
    """Return links that start at devices, each device as `str(device)` prints it; of any two backends."""


@hookspec
def devices_observer() -> Observer:  # type: ignore[empty-body]
    """Return a new observer of collectives; called each time that a program names this plugin as one."""
