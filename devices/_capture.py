"""Whether the current stream of a device is being captured in a graph, where the host may not wait for it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def is_capturing(device_type: str) -> bool:
    """Return whether what is called now is captured; False on devices that have no graphs."""
    if device_type in ("cpu", "meta"):
        return False
    try:
        module = torch.get_device_module(device_type)
        ask: Callable[[], bool] | None = getattr(module, "is_current_stream_capturing", None)
        return ask is not None and bool(ask())
    except RuntimeError:
        # A torch that is built without the device has the function, and nothing behind it; others have no module.
        return False
