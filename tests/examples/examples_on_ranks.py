"""Run an example on forked ranks, or as a user does, in new processes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import ranks

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *options: str, on: int) -> None:
    """Run an example on `on` ranks and raise what any of them raised."""
    ranks.run(on, _run, name, options)


def _run(name: str, options: tuple[str, ...]) -> None:
    sys.argv = [name, *options]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def start(program: Path, *options: str, torchrun: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Start a program in a new Python, under torchrun if options for it are given."""
    launcher = ["-m", "torch.distributed.run", "--standalone", *torchrun] if torchrun else []
    # A launcher that the tests themselves run under must not be taken for that of the program.
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, *launcher, str(program), *options],
        env={**inherited, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 400) -> str:
    """Wait until the program ends well and return what it printed."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # on which torchrun ends its ranks
        try:
            printed, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    assert process.returncode == 0, printed
    return printed
