"""Before the first test: the server that rank processes are forked from."""

from __future__ import annotations

import sys

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    if (ranks := sys.modules.get("ranks")) and not session.config.option.collectonly:
        ranks.warm_up()
