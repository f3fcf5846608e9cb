"""A law of what becomes of the others when the last rank of a world kills itself."""

from __future__ import annotations

import contextlib
import inspect
import io
import textwrap
from collections.abc import Callable

from devices.testing._processes import run_outcomes
from devices.testing._sending import pack
from devices.testing.conformance.check import Failure

_PROGRAM = """\
# python program.py
# It starts {size} ranks, of which the last kills itself. Its exit status is 1 where the backend is wrong.
import datetime
import os
import signal
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist

import devices


{source}


if "RANK" in os.environ:
    with devices.init({backend!r}, timeout=60) as world:
        {name}(world)
else:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {{**os.environ, "WORLD_SIZE": "{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}}
    ranks = [
        subprocess.Popen([sys.executable, __file__], env={{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}})
        for rank in range({size})
    ]
    failed = [rank.wait(120) for rank in ranks][:-1]
    sys.exit(any(failed))
"""


def killed(backend: str, law: Callable[..., None], size: int, timeout: float = 90.0) -> Failure | None:
    """Run `law(world)` on `size` processes, the last of which kills itself; return what is wrong, if something is."""
    with contextlib.redirect_stdout(io.StringIO()):
        outcomes = run_outcomes(pack(law, ()), size, timeout=timeout, backend=backend, mortal={size - 1})
    error = outcomes.error()
    if error is None:
        if outcomes.by_rank[-1].how == "died":
            return None
        return Failure(f"rank {size - 1} of {size} was to kill itself, and returned")
    return Failure("\n".join(str(error).splitlines()[:40]), program(backend, law, size))


def program(backend: str, law: Callable[..., None], size: int) -> str:
    """Return the program that shows by itself whether `law` holds; torchrun would end the others too."""
    source = textwrap.dedent(inspect.getsource(law)).strip()
    return _PROGRAM.format(size=size, source=source, backend=backend, name=law.__name__)
