"""The CPU backend keeps every law, on ranks that are processes of its own and on threads that stand for them."""

from __future__ import annotations

import pytest

from devices.testing.conformance import Conformance


class TestOnThreads(Conformance):
    backend = "cpu"
    ranks = "threads"


@pytest.mark.slow
class TestOnProcesses(Conformance):
    backend = "cpu"
    ranks = "processes"
