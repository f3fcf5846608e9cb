"""Before the first test: the server that rank processes are forked from, and what the collector need not look at."""

from __future__ import annotations

import gc
import sys

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    if ranks := sys.modules.get("ranks"):
        ranks.warm_up()
    # Torch and some thousand tests stay to the end: to look through them takes a third of a second each time.
    gc.collect()
    gc.freeze()
