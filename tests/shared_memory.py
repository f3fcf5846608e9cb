"""Whether tests may count on the memory that processes of a host share."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

import pytest

NEEDS_SHARED_MEMORY = pytest.mark.skipif(
    os.environ.get("DEVICES_FABRIC") == "off"
    or sys.platform != "linux"
    or platform.machine() != "x86_64"
    or importlib.util.find_spec("devices.fabric.host") is None,
    reason="needs the memory that processes of a host share: Linux on x86-64 without DEVICES_FABRIC=off",
)
