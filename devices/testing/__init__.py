"""For tests of programs and of backends: many ranks in one process, and a chip's limits without the chip.

torch is imported when a name is first used: a pytest that opens the door, `devices.testing.pytest`, starts fast.

>>> import devices.testing
>>> devices.testing.run(lambda world: world.rank, ranks=3)
[0, 1, 2]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.testing._check import Checked, check
    from devices.testing._emulation import Emulation, emulate
    from devices.testing._mixed import Mixed
    from devices.testing._mixed_report import MixedReport
    from devices.testing._processes import run_processes
    from devices.testing._report import Asked, Report
    from devices.testing._run import run

_LAZY = {
    **dict.fromkeys(("Checked", "check"), "devices.testing._check"),
    **dict.fromkeys(("Emulation", "emulate"), "devices.testing._emulation"),
    "Mixed": "devices.testing._mixed",
    "MixedReport": "devices.testing._mixed_report",
    "run_processes": "devices.testing._processes",
    **dict.fromkeys(("Asked", "Report"), "devices.testing._report"),
    "run": "devices.testing._run",
}

__all__ = [
    "Asked",
    "Checked",
    "Emulation",
    "Mixed",
    "MixedReport",
    "Report",
    "check",
    "emulate",
    "run",
    "run_processes",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _LAZY:
        from devices.errors import did_you_mean

        raise AttributeError(f"module 'devices.testing' has no attribute {name!r}{did_you_mean(name, __all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
