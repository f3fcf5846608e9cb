"""Who watches the verbs of this program, if anyone does."""

from __future__ import annotations

import threading

from devices.algorithms.concurrency import concurrency
from devices.algorithms.observed import AnyVerbs, ObservedVerbs, Observer
from devices.algorithms.verbs import Verbs

is_on = False
"""Whether anyone does; looked at before anything else here, so that watching costs nothing where nobody does."""

_everywhere: Observer | None = None
_threads = 0
_here = threading.local()


def observer() -> Observer | None:
    """Return who watches this thread's verbs."""
    found: Observer | None = getattr(_here, "observer", None)
    return found if found is not None else _everywhere


def observe(who: Observer | None) -> Observer | None:
    """Let `who` watch from now on, on this thread if it is a thread rank's, else everywhere; return who did before."""
    global is_on, _everywhere, _threads
    if concurrency().is_cooperative:
        before: Observer | None = getattr(_here, "observer", None)
        _threads += (who is not None) - (before is not None)
        _here.observer = who
    else:
        before, _everywhere = _everywhere, who
    is_on = _everywhere is not None or _threads > 0
    return before


def observed(verbs: Verbs, *, is_ours: bool) -> AnyVerbs:
    """Return `verbs`, watched if this thread's are."""
    found = observer()
    return verbs if found is None else ObservedVerbs(verbs, found, is_ours=is_ours)
