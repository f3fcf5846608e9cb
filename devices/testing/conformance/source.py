"""A law as a program that stands alone: what the author of a broken backend is shown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices._backend import Backend

_IMPORTS = {
    "contextlib": "import contextlib",
    "datetime": "import datetime",
    "gc": "import gc",
    "itertools": "import itertools",
    "math": "import math",
    "os": "import os",
    "random": "import random",
    "signal": "import signal",
    "sys": "import sys",
    "threading": "import threading",
    "time": "import time",
    "unittest": "import unittest",
    "warnings": "import warnings",
    "Path": "from pathlib import Path",
    "np": "import numpy as np",
    "torch": "import torch",
    "dist": "import torch.distributed as dist",
    "F": "import torch.nn.functional as F",
    "devices": "import devices",
}
"""What a law may use without importing it inside itself."""


def program_of(law: Callable[..., None], backend: str, size: int, *args: object) -> str:
    """Return the program whose exit status says whether `law(world, *args)` holds on `size` ranks of `backend`."""
    source = textwrap.dedent(inspect.getsource(law)).strip()
    names = set(re.findall(r"[A-Za-z_]\w*", source)) | {"devices"}
    imports = [line for name, line in _IMPORTS.items() if name in names]
    standard = [line for line in imports if not re.search(r"torch|devices|numpy", line)]
    others = [line for line in imports if line not in standard]
    call = f"{law.__name__}({', '.join(['world', *map(repr, args)])})"
    return "\n".join(
        [
            *in_words(size),
            *standard,
            *([""] if standard else []),
            *others,
            "",
            "",
            source,
            "",
            "",
            f"with devices.init({backend!r}, timeout=30) as world:",
            f"    {call}",
            "",
        ]
    )


def in_words(size: int) -> list[str]:
    """Return the first lines of a program: how to run it."""
    return [f"# torchrun --nproc-per-node={size} program.py", "# Its exit status is 1 where the backend is wrong."]


def host_program(law: Callable[..., None], backend: Backend) -> str:
    """Return the program whose exit status says whether `law(backend)` holds."""
    kind = type(backend)
    package = kind.__module__.partition(".")[0]
    plugins = [plugin for plugin in entry_points(group="devices") if plugin.module.partition(".")[0] == package]
    # A package may have several; that of the backend's own name is the likely one.
    plugins.sort(key=lambda plugin: plugin.name != backend.name)
    if plugins:
        found = [
            f"[plugin] = entry_points(group='devices', name={plugins[0].name!r})",
            "offered = plugin.load().devices_backend()",
            "offered = offered if isinstance(offered, (list, tuple)) else [offered]",
            f"backend = next(each for each in offered if each.name == {backend.name!r})",
        ]
        imports = ["from importlib.metadata import entry_points"]
    else:
        imports = [f"import {kind.__module__}"]
        found = [f"backend = {kind.__module__}.{kind.__qualname__}()"]
    source = textwrap.dedent(inspect.getsource(law)).strip()
    return "\n".join(
        [
            "# python program.py",
            "# Its exit status is 1 where the backend is wrong.",
            *imports,
            "",
            "",
            source,
            "",
            "",
            *found,
            f"{law.__name__}(backend)",
            "",
        ]
    )
