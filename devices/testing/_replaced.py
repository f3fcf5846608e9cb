"""Names of a module or a class that mean something else on some threads, for as long as any thread wants them to."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import isclass
from types import BuiltinFunctionType
from typing import Any, final

from devices import _torch
from devices.testing._device_here import here

_MISSING: Any = object()


@final
@dataclass(frozen=True)
class Replaced:
    """One name.

    Args:
        owner: the module or the class.
        name: the attribute.
        instead: `instead(here, original, *args, **kwargs)` is what a call, or a property's getter, does on a thread
            that sees emulated devices; with `everywhere`, what the name is.
        everywhere: whether `instead` is simply put in the name's place, on all threads.
        only: the type of device that it is for; None for any.
    """

    owner: Any
    name: str
    instead: Any
    everywhere: bool = False
    only: str | None = None

    def value(self) -> Any:
        if self.everywhere:
            return self.instead
        original = getattr(self.owner, self.name)
        known, value = _made.get((self.owner, self.name), (None, None))
        if known is not original:
            if callable(original):
                value = on_some_threads(original, self.instead, self.only)
                _torch.let_scripts_call(value, original)
            else:
                value = _property(original.__get__, self.instead)
            _made[self.owner, self.name] = original, value
        # A class does not bind a function of C's, as it would bind this one.
        return staticmethod(value) if isinstance(original, BuiltinFunctionType) and isclass(self.owner) else value


_made: dict[tuple[Any, str], tuple[Any, Any]] = {}
"""What stands in for which originals; kept, for TorchScript knows functions by their `id`."""


def on_some_threads(
    original: Callable[..., Any], instead: Callable[..., Any], only: str | None = None
) -> Callable[..., Any]:
    """Return `original`, or `instead` on threads that see emulated devices."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        found = here()
        if found is None or only not in (None, found.type):
            return original(*args, **kwargs)
        return instead(found, original, *args, **kwargs)

    # Who unwraps it would look for the source of a function that has none.
    del call.__wrapped__
    return call


def _property(original: Callable[..., Any], instead: Callable[..., Any]) -> property:
    def get(self: Any) -> Any:
        found = here()
        return original(self) if found is None else instead(found, original, self)

    return property(get)


@final
class Replacements:
    """Names that are replaced together, as long as anyone holds them."""

    def __init__(self, names: Callable[[], Iterable[Replaced]]) -> None:
        self._names = names
        self._before: list[tuple[Any, str, Any]] = []
        self._holders = 0
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                for each in self._names():
                    self._before.append((each.owner, each.name, vars(each.owner).get(each.name, _MISSING)))
                    setattr(each.owner, each.name, each.value())

    def release(self) -> bool:
        """Hold them no more; return whether nobody does."""
        with self._lock:
            self._holders -= 1
            while not self._holders and self._before:
                owner, name, before = self._before.pop()
                if before is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
            return not self._holders
