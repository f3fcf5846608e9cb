"""How many workers there are, the server that forks rank processes, and what the collector need not look at."""

from __future__ import annotations

import gc
import os
import sys

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return half as many more as there are cores: many a test waits, for a process to start or a timeout to be up."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        # Xdist's own looks at it.
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + cores // 2


def pytest_configure(config: pytest.Config) -> None:
    # Who only hands out the tests to workers collects none, and would never come to enable it.
    if hasattr(config, "workerinput") or getattr(config.option, "dist", "no") == "no":
        gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    if ranks := sys.modules.get("ranks"):
        ranks.warm_up()
    # Torch and some thousand tests stay to the end: to look through them takes a third of a second each time.
    gc.freeze()
    gc.enable()
