"""The store of thread ranks: who waits for a key gives the baton away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist

from devices.fabric.interface import Condition, Fabric
from devices.fabric.progress import Progress
from devices.testing._baton import Baton
from devices.testing._thread_fabric import awaited

_LOOKS = 16
"""Who looks at so many keys in turn, and again, is not taken to wait for one of them."""

Awaited = list[tuple[Fabric, Condition]]


@final
class ThreadStore(dist.Store):
    """A store that all ranks of a run share.

    Args:
        baton: what they wait by.
        progresses: the verbs of each rank, which go on while it waits here.
    """

    def __init__(self, baton: Baton, progresses: Sequence[Progress]) -> None:
        super().__init__()
        self._baton = baton
        self._progresses = progresses
        self._values: dict[str, bytes] = {}
        # The last keys that each rank has looked at since the last change: who looks again waits for another value.
        self._looked: dict[int, deque[str]] = {}
        # Where all run at once, two may change a value.
        self._lock = threading.RLock()

    def set(self, key: str, value: Any) -> None:
        self._values[key] = _bytes(value)
        self._changed(key)

    def get(self, key: str) -> bytes:
        if key in self._values:
            self._look_at(key)
        self.wait([key])
        return self._values[key]

    def add(self, key: str, amount: int) -> int:
        if not amount:
            self._look_at(key)
        with self._lock:
            total = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(total).encode()
        if amount:
            self._changed(key)
        return total

    def append(self, key: str, value: Any) -> None:
        with self._lock:
            self.set(key, self._values.get(key, b"") + _bytes(value))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        wanted = _bytes(expected)
        with self._lock:
            if is_as_expected := self._values.get(key, b"") == wanted:
                self.set(key, desired)
            found = self._values.get(key, wanted)
        if not is_as_expected:
            self._look_at(key)
        return found

    def check(self, keys: Sequence[str]) -> bool:
        for key in keys:
            self._look_at(key)
        return all(key in self._values for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        while missing := [key for key in keys if key not in self._values]:
            first, verbs = missing[0], self._advance()

            def look(first: str = first, verbs: Awaited = verbs) -> tuple[Hashable, ...]:
                if first in self._values or (verbs and not awaited(verbs)):
                    return ()
                return (("store", first), *awaited(verbs))

            self._baton.wait(look, _about(keys))

    def delete_key(self, key: str) -> bool:
        was_there = self._values.pop(key, None) is not None
        self._changed(key)
        return was_there

    def num_keys(self) -> int:
        self._look_at("")
        return len(self._values)

    def clone(self) -> ThreadStore:
        return self

    # As torch's C++ calls them.
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def _changed(self, key: str) -> None:
        self._looked.clear()
        self._baton.wake(("store", key))

    def _look_at(self, key: str) -> None:
        """Let others go first if this rank has looked at `key` before and nothing was changed since."""
        task = self._baton.task
        if task is None:
            return
        looked = self._looked.setdefault(task.rank, deque(maxlen=_LOOKS))
        if key in looked:
            self._advance()
            self._baton.pause(_about([key]))
        else:
            looked.append(key)

    def _advance(self) -> Awaited:
        """Let the verbs of the rank that waits here go on; return what they wait for."""
        task = self._baton.task
        return self._progresses[task.rank].advance() if task is not None else []

    def set_timeout(self, timeout: timedelta) -> None:
        """Do nothing: a key that nobody will set is a deadlock, found at once."""


def _about(keys: Sequence[str]) -> str:
    return f"the store's key {' and '.join(map(repr, keys))}"


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
