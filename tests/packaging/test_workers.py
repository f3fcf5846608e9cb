"""How many of pytest-xdist's workers run the tests."""

from __future__ import annotations

import os

import pytest


def test_there_are_more_workers_than_cores_unless_the_environment_says_how_many(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pytestconfig.pluginmanager.hasplugin("xdist"):
        pytest.skip("needs pytest-xdist, which is not loaded")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == cores + cores // 2
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "97")
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == 97
