"""Whether tests may count on the memory that processes of a host share."""

from __future__ import annotations

import os
import platform
import sys

import pytest

HAS_SHARED_MEMORY = (
    os.environ.get("DEVICES_FABRIC") != "off" and sys.platform == "linux" and platform.machine() == "x86_64"
)

_REASON = "needs the memory that processes of a host share: Linux on x86-64 without DEVICES_FABRIC=off"

NEEDS_SHARED_MEMORY = pytest.mark.skipif(not HAS_SHARED_MEMORY, reason=_REASON)


def needs_shared_memory() -> None:
    """Skip the test that calls this where there is none."""
    if not HAS_SHARED_MEMORY:
        pytest.skip(_REASON)
