"""The random numbers of one rank: those of a process are global, and thread ranks share a process."""

from __future__ import annotations

import os
import random
from typing import Any, final

import numpy.random
import torch

# Public, though numpy's stubs do not say so.
_set_bit_generator: Any = numpy.random.set_bit_generator  # type: ignore[attr-defined]
_bit_generator: Any = numpy.random.get_bit_generator  # type: ignore[attr-defined]

_FRESH = 67280421310721  # what torch seeds a new process with: c10::default_rng_seed_val


@final
class RandomState:
    """What a rank's random numbers have come to, and its own variables of the environment, while another rank runs.

    Like a process of its own, a rank starts with torch's default seed. Python's and numpy's generators, which a
    process seeds from the machine, start from the rank's number, so that a run can be repeated.

    Args:
        rank: the rank.
    """

    def __init__(self, rank: int) -> None:
        self._variables = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        self._torch = torch.Generator().manual_seed(_FRESH).get_state()
        self._python = random.Random(rank).getstate()
        self._numpy: Any = numpy.random.MT19937(rank)

    def enter(self) -> None:
        """Make the process's generators this rank's."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        _set_bit_generator(self._numpy)
        os.environ.update(self._variables)

    def leave(self) -> None:
        """Keep what they have come to."""
        self._torch = torch.get_rng_state()
        self._python = random.getstate()
        self._numpy = _bit_generator()
