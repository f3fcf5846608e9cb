"""Who watches the verbs of this program, if anyone does."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from devices import _registry
from devices._observer import Observer
from devices.algorithms.concurrency import concurrency
from devices.algorithms.observed import AnyVerbs, ObservedVerbs, Observers
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError

is_on = False
"""Whether anyone does; looked at before anything else here, so that watching costs nothing where nobody does."""

_everywhere: tuple[Observer, ...] = ()
_threads = 0
_here = threading.local()
_lock = threading.RLock()
_named: str | None = None
"""What DEVICES_OBSERVERS said when it was last looked at."""


@contextlib.contextmanager
def observe(*observers: Observer | str) -> Iterator[tuple[Observer, ...]]:
    """Let observers watch the verbs of this program while this lasts; in the function of a thread rank, that rank's.

    They hear of our verbs over any group, and of torch's own over the process group "devices"; over a native process
    group of torch's, its verbs are called with nothing in between.

    Args:
        observers: objects; or names of plugins, each of which makes one by its hook `devices_observer`.

    Yields:
        The observers.

    Raises:
        PluginError: a plugin that was named is not there, is broken or has no observer.

    >>> import torch, devices
    >>> class Counting(devices.Observer):
    ...     calls = 0
    ...     def called(self, call):
    ...         self.calls += 1
    >>> with devices.init(), devices.observe(Counting()) as (counting,):
    ...     _ = devices.all_reduce(torch.ones(2))
    ...     counting.calls
    1
    """
    found = tuple(_registry.observer(who) if isinstance(who, str) else who for who in observers)
    if strangers := [who for who in found if not isinstance(who, Observer)]:
        raise ArgumentError(f"{strangers[0]!r} is no devices.Observer, nor the name of a plugin")
    for who in found:
        _add(who)
    try:
        yield found
    finally:
        for who in reversed(found):
            _remove(who)


def begin() -> None:
    """Let the observers watch that DEVICES_OBSERVERS names, from now to the end of the process."""
    global _named
    text = os.environ.get("DEVICES_OBSERVERS", "")
    if text == (_named or ""):
        return
    with _lock:
        if text == (_named or ""):
            return
        for name in filter(None, (name.strip() for name in text.split(","))):
            _add(_registry.observer(name), everywhere=True)
        _named = text


def observer() -> Observer | None:
    """Return who watches this thread's verbs: nobody, one, or several as one."""
    here: tuple[Observer, ...] = getattr(_here, "observers", ())
    found = (*_everywhere, *here)
    heard = [
        who
        for place, who in enumerate(found)
        if not (who.is_innermost_only and any(type(later) is type(who) for later in found[place + 1 :]))
    ]
    return None if not heard else heard[0] if len(heard) == 1 else Observers(heard)


def observed(verbs: Verbs, *, is_ours: bool) -> AnyVerbs:
    """Return `verbs`, watched if this thread's are."""
    found = observer()
    return verbs if found is None else ObservedVerbs(verbs, found, is_ours=is_ours)


def _add(who: Observer, *, everywhere: bool = False) -> None:
    global is_on, _everywhere, _threads
    with _lock:
        if concurrency().is_cooperative and not everywhere:
            _here.observers = (*getattr(_here, "observers", ()), who)
            _threads += 1
        else:
            _everywhere = (*_everywhere, who)
        is_on = True


def _remove(who: Observer) -> None:
    """Forget the last of these that this thread has added, or else the last that watches everywhere."""
    global is_on, _everywhere, _threads
    here: tuple[Observer, ...] = getattr(_here, "observers", ())
    with _lock:
        if any(each is who for each in here):
            _here.observers = _without(here, who)
            _threads -= 1
        else:
            _everywhere = _without(_everywhere, who)
        is_on = bool(_everywhere) or _threads > 0


def _without(observers: tuple[Observer, ...], who: Observer) -> tuple[Observer, ...]:
    last = max((place for place, each in enumerate(observers) if each is who), default=len(observers))
    return observers[:last] + observers[last + 1 :]
