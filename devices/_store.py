"""The store that the ranks of a group share, carrying JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

from devices.errors import CollectiveError

if TYPE_CHECKING:
    from torch.distributed import Store as TorchStore


_LOOK = 0.02


@final
@dataclass(frozen=True, slots=True)
class _End:
    """What ends the waits of a store: a key, wherever it is set, and what it means, in words."""

    torch: TorchStore
    key: str
    why: str


@final
class Store:
    """A key-value store shared by the ranks of a group. Values are JSON, never pickles.

    Args:
        torch: torch's own store, handed to transports of torch's that ask for one.
        gone: says, while a key is waited for, which of those who might set it have died; nothing if none has.
    """

    def __init__(self, torch: TorchStore, gone: Callable[[], str] | None = None) -> None:
        self.torch = torch
        self._gone = gone
        self._end: _End | None = None

    def under(self, prefix: str) -> Store:
        """Return the same store for keys of their own, whose names begin with `prefix`."""
        from torch.distributed import PrefixStore

        return self._with(PrefixStore(prefix, self.torch), self._end)

    def apart(self) -> Store | None:
        """Return the same store by a connection of its own; None where this kind of store, or this torch, has none.

        A thread that waits in torch's own `get` holds up all others at the same connection.
        """
        try:
            end = None if self._end is None else replace(self._end, torch=_apart(self._end.torch))
            return self._with(_apart(self.torch), end)
        except (AttributeError, RuntimeError):
            return None

    def lost(self) -> str:
        """Return which of those who share the store have died, in words, as far as that can be seen; "" if none has."""
        return self._gone() if self._gone is not None else ""

    def ended(self) -> str:
        """Return why what is waited for will not come, as `hearing` has it; "" if nothing says that."""
        end = self._end
        return end.why if end is not None and end.torch.check([end.key]) else ""

    def hearing(self, told: Store, key: str, why: str) -> Store:
        """Return the same store, whose waits end too once `key` of the store `told` is set, which means `why`."""
        return self._with(self.torch, _End(told.torch, key, why))

    def _with(self, torch: TorchStore, end: _End | None) -> Store:
        store = Store(torch, self._gone)
        store._end = end
        return store

    def set(self, key: str, value: Any) -> None:
        """Set `key` to `value`, which must be JSON."""
        self.torch.set(key, json.dumps(value, separators=(",", ":"), allow_nan=False))

    def get(self, key: str) -> Any:
        """Return the value of `key`, waiting for it up to the store's timeout."""
        if self._is_watched:
            # That the time is up, torch's own `get` says.
            timeout: timedelta = self.torch.timeout  # type: ignore[attr-defined]  # not in the stubs
            self.comes(key, timeout.total_seconds() - _LOOK)
        return json.loads(self.torch.get(key))

    def add(self, key: str, amount: int) -> int:
        """Add `amount` to the whole number at `key`, 0 at first, and return the sum: of two ranks, one has it first."""
        return self.torch.add(key, amount)

    def first(self, key: str, value: Any) -> Any:
        """Set `key` to `value`, which must be JSON, unless it is set; return what it is then, the same on all ranks."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        return json.loads(self.torch.compare_set(key, "", text))

    def get_all(self, keys: Sequence[str]) -> list[Any]:
        """Return the values of `keys`, waiting for them up to the store's timeout."""
        has_many: bool = self.torch.has_extended_api()  # type: ignore[attr-defined]  # not in the stubs
        if self._is_watched or not has_many:
            return [self.get(key) for key in keys]
        return [json.loads(value) for value in self.torch.multi_get(list(keys))]

    def comes(self, key: str, seconds: float) -> bool:
        """Return whether `key` is set, or comes to be within that many seconds.

        Raises:
            CollectiveError: it is not, and one of those who might set it has died.
        """
        deadline = time.monotonic() + seconds
        if self.torch.check([key]):
            return True
        if self._is_watched:
            return self._comes_watched(key, deadline)
        # The stores count in milliseconds, and some take none to mean for ever.
        if seconds < 0.001:
            return False
        try:
            self.torch.wait([key], timedelta(seconds=seconds))
        except Exception:
            # Each kind of store has its own error for a wait that was too long.
            if self.torch.check([key]):
                return True
            if time.monotonic() < deadline - 0.01:
                raise
            return False
        return True

    @property
    def _is_watched(self) -> bool:
        return self._gone is not None or self._end is not None

    def _comes_watched(self, key: str, deadline: float) -> bool:
        pause = 0.0005
        while True:
            # Who is gone has done before what it did, so that the key is looked for last.
            lost, left = self.lost() or self.ended(), deadline - time.monotonic()
            if self.torch.check([key]):
                return True
            if lost:
                raise CollectiveError(f"{lost}, and this rank waits for what it was to tell: {key}")
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LOOK)


def _apart(store: TorchStore) -> TorchStore:
    """Return a store of torch's by a connection of its own."""
    cloned: TorchStore = store.clone()  # type: ignore[attr-defined]  # not in the stubs
    return cloned
