"""Makes torch know the process group "devices". torch calls `register` at the end of `import torch`.

An entry point that fails would break `import torch` for everyone who has `devices` installed, so `register` raises
nothing: what went wrong is kept in `error`, for `devices doctor`.
"""

from __future__ import annotations

from typing import Any

error: Exception | None = None
"""Why `register` failed, if it did."""

# Device types that torch may route to the group; a type's name costs nothing where its hardware is missing.
# "neuron" is what torch's spare type, "privateuseone", is renamed to by its vendor's package.
_DEVICE_TYPES = ("cpu", "cuda", "xpu", "privateuseone", "neuron")


def register() -> None:
    """Let `torch.distributed.init_process_group("devices")` work; doing so twice changes nothing."""
    global error
    try:
        _register()
    except Exception as caught:
        error = caught


def _register() -> None:
    import torch.distributed as dist

    if not dist.is_available() or hasattr(dist.Backend, "DEVICES"):
        return
    defaults = dist.Backend.default_device_backend_map
    before = dict(defaults)
    dist.Backend.register_backend("devices", _create, extended_api=True, devices=list(_DEVICE_TYPES))
    # torch has made us the default of each type that had none, which would keep out the vendor's own group.
    for device_type in _DEVICE_TYPES:
        if device_type not in before:
            defaults.pop(device_type, None)


def _create(options: Any, choice: Any) -> Any:
    """Open a group, the first one bringing the rest of `devices` in."""
    from devices.c10d.create import create_process_group

    return create_process_group(options, choice)
