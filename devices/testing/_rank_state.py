"""What a process has once and each thread rank needs for itself: random numbers, variables, torch's globals."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy.random
import torch

from devices._torch import RankGlobals
from devices.testing._shared_sharding import shared_sharding

# Public, though numpy's stubs do not say so.
_set_bit_generator: Any = numpy.random.set_bit_generator  # type: ignore[attr-defined]
_bit_generator: Any = numpy.random.get_bit_generator  # type: ignore[attr-defined]

_FRESH = 67280421310721  # of no meaning


@final
class RankState:
    """What all that has come to on one rank, while another one runs.

    The generators of torch, Python and numpy, which a process seeds from the machine, start from the rank's number, so
    that ranks differ as processes do, and a run can be repeated.

    Args:
        rank: the rank.
        variables: torchrun's variables, as the rank is to see them.
    """

    def __init__(self, rank: int, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._torch = torch.Generator().manual_seed(_FRESH + rank).get_state()
        self._python = random.Random(rank).getstate()
        self._numpy: Any = numpy.random.MT19937(rank)
        self._dtype = torch.get_default_dtype()
        self._argv = list(sys.argv)
        self._main = sys.modules["__main__"]
        self._globals = RankGlobals()

    def enter(self) -> None:
        """Make the process's this rank's."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        _set_bit_generator(self._numpy)
        os.environ.update(self._variables)
        sys.argv, sys.modules["__main__"] = self._argv, self._main
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        self._globals.enter()

    def leave(self) -> None:
        """Keep what the process's have come to."""
        self._torch = torch.get_rng_state()
        self._python = random.getstate()
        self._numpy = _bit_generator()
        self._argv, self._main = sys.argv, sys.modules["__main__"]
        self._dtype = torch.get_default_dtype()
        self._globals.leave()


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Give back to the process, at the end, all that ranks change."""
    # Each of torch's groups puts another layer around the hook that prints what ends the program.
    variables, mine, hook, argv, folder = dict(os.environ), RankState(0, {}), sys.excepthook, sys.argv, Path.cwd()
    mine.leave()
    threads = torch.get_num_threads()
    # Ranks that run at once draw from the very generator that is kept.
    drawn = numpy.random.get_state()
    try:
        # Who restores filters while others are between theirs leaves any.
        with warnings.catch_warnings(), shared_sharding():
            yield
    finally:
        mine.enter()
        numpy.random.set_state(drawn)
        torch.set_num_threads(threads)
        sys.excepthook, sys.argv = hook, argv
        os.chdir(folder)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
