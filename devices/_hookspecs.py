"""The hooks of a plugin. All are named `devices_...`, so that one module may serve several hosts."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from devices._backend import Backend

hookspec = pluggy.HookspecMarker("devices")
hookimpl = pluggy.HookimplMarker("devices")


@hookspec
def devices_backend() -> Backend | Sequence[Backend]:  # type: ignore[empty-body]
    """Return the plugin's backend, or a list of them."""
