"""A pytest of its own, forked from the server that has torch loaded: most of what one takes is the import of torch."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import ranks

TESTS = Path(__file__).parents[1]
MARKED_FOR_REWRITING = ("devices.testing.pytest", "devices.testing._asserts", "hypothesis", "_hypothesis", "xdist")
"""What of the server's modules pytest wants to import itself."""


def run_forked(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Return what `pytester.runpytest_subprocess` would, for suites whose ranks are threads."""
    streams = [pytester.path / name for name in ("forked-stdout", "forked-stderr")]
    command = (f"--basetemp={pytester.path / 'forked'}", *arguments)
    began = time.monotonic()
    child = ranks._context.Process(
        target=_pytest, args=(pytester.path, command, dict(os.environ), streams), daemon=False
    )
    child.start()
    child.join(200)
    if child.is_alive():
        child.kill()
        child.join()
        raise TimeoutError("\n".join(stream.read_text() for stream in streams if stream.exists()))
    out, err = (stream.read_text().splitlines() for stream in streams)
    for line in (*out, *err):
        print(line)
    assert child.exitcode is not None
    return pytest.RunResult(child.exitcode, out, err, time.monotonic() - began)


def _pytest(folder: Path, command: tuple[str, ...], variables: dict[str, str], streams: list[Path]) -> None:
    import torch

    for number, stream in enumerate(streams, 1):
        opened = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for name in list(sys.modules):
        if name.startswith(MARKED_FOR_REWRITING):
            del sys.modules[name]
    # As `python -m pytest` has it, and not as the tests that ask for it do.
    sys.path[:] = ["", *(place for place in sys.path if place and not Path(place).is_relative_to(TESTS))]
    torch.set_num_threads(1)
    status = pytest.main(list(command))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))
