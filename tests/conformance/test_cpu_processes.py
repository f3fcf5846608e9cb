"""The CPU backend keeps every law, on ranks that are processes."""

from __future__ import annotations

import pytest

from devices.testing.conformance import Conformance


@pytest.mark.slow
class TestOnProcesses(Conformance):
    backend = "cpu"
    ranks = "processes"
    quick = True
