"""The CPU backend's thread ranks keep every law; its processes have a file of their own, for another worker."""

from __future__ import annotations

import pytest

from devices.testing.conformance import Conformance


@pytest.mark.slow
class TestOnThreads(Conformance):
    backend = "cpu"
    ranks = "threads"
