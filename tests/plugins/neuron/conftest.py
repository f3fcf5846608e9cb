from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from laid_out import lay_out


@pytest.fixture(scope="session")
def at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of a machine that is laid out once, for tests that only read it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = lay_out(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder
