"""All checks, and what became of them on one backend."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from devices._backend import Backend
from devices.errors import ArgumentError, did_you_mean
from devices.testing.conformance import (
    failures,
    gradients,
    hosts,
    leaks,
    life,
    order,
    random_programs,
    refusals,
    torch_programs,
    under_way,
    verbs,
)
from devices.testing.conformance.check import Broken, Check, Outcome, Skipped, Tally
from devices.testing.conformance.own import Own, own_of
from devices.testing.conformance.subject import Subject, subject

CHECKS: tuple[Check, ...] = (
    *hosts.CHECKS,
    *verbs.CHECKS,
    *random_programs.CHECKS,
    *order.CHECKS,
    *under_way.CHECKS,
    *gradients.CHECKS,
    *torch_programs.CHECKS,
    *refusals.CHECKS,
    *life.CHECKS,
    *failures.CHECKS,
    *leaks.CHECKS,
)
"""Every law, in the order in which they are looked at."""


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What became of the checks on one backend.

    Args:
        subject: the backend.
        outcomes: of each check, in order.
        own: which verbs are its own; None if no check of verbs was asked for, or no group of two ranks opens.
    """

    subject: Subject
    outcomes: tuple[Outcome, ...]
    own: Own | None = None

    @property
    def is_proved(self) -> bool:
        """Whether nothing is wrong."""
        return all(outcome.is_proved for outcome in self.outcomes)

    @property
    def is_empty(self) -> bool:
        """Whether all was skipped, which proves nothing."""
        tallies = [outcome.tally for outcome in self.outcomes]
        return not any(tally.proved or tally.refused or tally.failed for tally in tallies)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The checks that found something wrong."""
        return tuple(outcome for outcome in self.outcomes if not outcome.is_proved)


def conform(
    backend: str | Backend,
    *,
    ranks: str | None = None,
    only: str = "*",
    seed: int = 0,
    quick: bool = False,
    told: Callable[[Outcome], object] | None = None,
) -> Report:
    """Look whether a backend keeps the laws; return what was found.

    Args:
        backend: its name, or a backend that no plugin provides, whose ranks are then threads.
        ranks: "threads" or "processes"; threads if the backend can have such, unless said.
        only: a pattern of the names of checks, as a shell's: "verbs.*".
        seed: random programs are drawn from it.
        quick: whether to draw fewer of them.
        told: called with each outcome as it comes.

    Raises:
        DevicesError: the backend is not here, or `only` matches no check.
    """
    checks = matching(only)
    on = subject(backend, ranks=ranks, seed=seed, quick=quick)
    outcomes = []
    for check in checks:
        outcomes.append(run_check(check, on))
        if told is not None:
            told(outcomes[-1])
    calls_verbs = any(check.name.startswith("verbs.") for check in checks)
    return Report(on, tuple(outcomes), own_of(on) if calls_verbs else None)


def run_check(check: Check, on: Subject) -> Outcome:
    """Run one check on a subject, whatever it comes to."""
    tally, begin = Tally(), time.monotonic()
    try:
        # What ranks print would stand in the table.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # torch says of complex32, once in a process, that not all its operators have it.
            warnings.filterwarnings("ignore", "ComplexHalf support", UserWarning)
            check.run(on, tally)
    except Broken as broken:
        tally.fail(broken.what, broken.program)
    except Skipped as skipped:
        tally.skip(str(skipped))
    except (Exception, SystemExit) as error:
        tally.fail("".join(traceback.format_exception(error, limit=-8)))
    return Outcome(check, tally, time.monotonic() - begin)


def matching(only: str) -> Sequence[Check]:
    """Return the checks whose names match a pattern.

    Raises:
        ArgumentError: none does.
    """
    found = [check for check in CHECKS if fnmatch.fnmatchcase(check.name, only)]
    if not found:
        known = [check.name for check in CHECKS]
        raise ArgumentError(f"no check is named {only!r}{did_you_mean(only, known) or '.'} Known: {', '.join(known)}")
    return found
