"""pytest's way to tell a failed assertion, for a rank's process, which pytest did not start.

Some names of pytest are private here: nothing public makes a configuration without running tests, or tells an assertion
how to compare. Tried on pytest 8.2 and 9.2; where it fails to import, assertions are told as Python does.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from importlib.abc import Loader
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import _pytest.assertion.util
import pytest
from _pytest.config import _prepareconfig, create_terminal_writer, default_plugins

# The server that ranks are forked from imports this file, and so spares each rank from doing it.
for _name in default_plugins:
    importlib.import_module(f"_pytest.{_name}")

_QUIET = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
_LINES = 60


def prepare(verbose: int) -> Loader:
    """Let assertions be told as pytest does with `-v` given `verbose` times; return what loads a module that has some.

    It changes this process for good.
    """
    before = list(sys.meta_path)
    options = ["--noconftest", "-c", os.devnull, "--rootdir=/", "--capture=no"]
    with mock.patch.dict(os.environ, _QUIET):
        config = _prepareconfig(options, [])
    config.option.verbose = verbose
    # Before pytest 9 a comparison asks the terminal's writer for colours.
    terminal = SimpleNamespace(_tw=create_terminal_writer(config, io.StringIO()))
    config.pluginmanager.register(terminal, "terminalreporter")

    def compare(op: str, left: object, right: object) -> str | None:
        return _compared(config, op, left, right)

    _pytest.assertion.util._reprcompare = compare
    [loader] = [finder for finder in sys.meta_path if finder not in before and isinstance(finder, Loader)]
    return loader


def told(error: BaseException, style: Literal["long", "short"]) -> str:
    """Return the traceback of `error` as pytest shows it."""
    found: pytest.ExceptionInfo[Any] = pytest.ExceptionInfo.from_exception(error)
    text = str(found.getrepr(style=style))
    # It comes stripped, of the indentation of its first line too.
    return text if style == "short" or text.startswith((">", "E ", "_")) else f"    {text}"


def _compared(config: pytest.Config, op: str, left: object, right: object) -> str | None:
    """Return what pytest says of a comparison that failed, in the form that its rewritten assertions want."""
    try:
        found = config.hook.pytest_assertrepr_compare(config=config, op=op, left=left, right=right)
    except Exception:
        return None  # the comparison itself is told anyhow
    for lines in found:
        if lines:
            shown = [line.replace("\n", "\\n") for line in lines[:_LINES]]
            more = [f"... {len(lines) - _LINES} more lines"] if len(lines) > _LINES else []
            return "\n~".join(shown + more).replace("%", "%%")
    return None
