"""For tests of programs and of backends: many ranks in one process, and a chip's limits without the chip.

>>> import devices.testing
>>> devices.testing.run(lambda world: world.rank, ranks=3)
[0, 1, 2]
"""

from __future__ import annotations

from devices.testing._emulation import Emulation, emulate
from devices.testing._report import Asked, Report
from devices.testing._run import run

__all__ = ["Asked", "Emulation", "Report", "emulate", "run"]
