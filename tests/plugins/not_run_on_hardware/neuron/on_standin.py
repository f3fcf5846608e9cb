"""Ranks on the stand-in of torch_neuronx, on a trn2.48xlarge that is laid out as files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from laid_out import lay_out

from devices.testing import run_processes
from devices.testing._processes import warm_up

STANDIN = Path(__file__).parent / "standin"
TRAINIUM = "trn2.48xlarge-lnc2"


def variables(folder: Path, machine: str = TRAINIUM) -> dict[str, str]:
    """Return the variables with which a process finds that machine, whose files go to `folder`."""
    cores = folder / "cores"
    cores.mkdir(parents=True, exist_ok=True)
    root = folder / machine
    root.mkdir(exist_ok=True)
    lay_out(machine, root)
    return {"DEVICES_NEURON_ROOT": str(root), "NEURON_STANDIN_MACHINE": str(cores)}


@contextlib.contextmanager
def standin() -> Iterator[None]:
    """Let processes that are started meanwhile find the stand-in when they import torch_neuronx."""
    # The server that they are forked from must not: torch would import it there, for all tests of this worker.
    warm_up()
    sys.path.insert(0, str(STANDIN))
    try:
        yield
    finally:
        sys.path.remove(str(STANDIN))


def on_standin(
    function: Callable[..., Any], ranks: int, *args: Any, env: dict[str, str], backend: str = "neuron"
) -> list[Any]:
    """Call `function(world, *args)` on so many ranks, each a process with a logical core of its own."""
    with standin():
        return run_processes(function, ranks, *args, env=env, backend=backend, timeout=200)
