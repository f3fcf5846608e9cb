"""What opens a group of GPUs."""

from __future__ import annotations

from devices import Communicator, Group
from devices.errors import UnsupportedError


def open_group(group: Group) -> Communicator:
    """Return what carries a group of GPUs."""
    raise UnsupportedError(f"{group}: this version finds NVIDIA GPUs, and opens no group over them yet")
