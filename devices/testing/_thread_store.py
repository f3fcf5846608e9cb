"""The store of thread ranks: who waits for a key gives the baton away."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist

from devices.fabric.interface import Condition, Fabric
from devices.fabric.progress import Progress
from devices.testing._baton import Baton
from devices.testing._thread_fabric import awaited

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
        # Where all run at once, two may change a value.
        self._lock = threading.RLock()

    def set(self, key: str, value: Any) -> None:
        self._values[key] = value.encode() if isinstance(value, str) else bytes(value)
        self._baton.wake(("store", key))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            total = int(self._values.get(key, b"0")) + amount
            self.set(key, str(total))
        return total

    def append(self, key: str, value: Any) -> None:
        with self._lock:
            self.set(key, self._values.get(key, b"") + (value.encode() if isinstance(value, str) else bytes(value)))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        wanted = expected.encode() if isinstance(expected, str) else bytes(expected)
        with self._lock:
            if self._values.get(key, b"") == wanted:
                self.set(key, desired)
            return self._values.get(key, wanted)

    def check(self, keys: Sequence[str]) -> bool:
        if all(key in self._values for key in keys):
            return True
        self._advance()
        self._baton.pause(_about(keys))
        return all(key in self._values for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        while missing := [key for key in keys if key not in self._values]:
            first, verbs = missing[0], self._advance()

            def look(first: str = first, verbs: Awaited = verbs) -> tuple[Hashable, ...]:
                if first in self._values or (verbs and not awaited(verbs)):
                    return ()
                return (("store", first), *awaited(verbs))

            self._baton.wait(look, _about(keys))

    def _advance(self) -> Awaited:
        """Let the verbs of the rank that waits here go on; return what they wait for."""
        task = self._baton.task
        return self._progresses[task.rank].advance() if task is not None else []

    def delete_key(self, key: str) -> bool:
        return self._values.pop(key, None) is not None

    def num_keys(self) -> int:
        return len(self._values)

    def set_timeout(self, timeout: timedelta) -> None:
        """Do nothing: a key that nobody will set is a deadlock, found at once."""


def _about(keys: Sequence[str]) -> str:
    return f"the store's key {' and '.join(map(repr, keys))}"
