"""The store that the ranks of a group share, carrying JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch.distributed import Store as TorchStore


@final
class Store:
    """A key-value store shared by the ranks of a group. Values are JSON, never pickles.

    Args:
        torch: torch's own store, handed to transports of torch's that ask for one.
    """

    def __init__(self, torch: TorchStore) -> None:
        self.torch = torch

    def set(self, key: str, value: Any) -> None:
        """Set `key` to `value`, which must be JSON."""
        self.torch.set(key, json.dumps(value, separators=(",", ":"), allow_nan=False))

    def get(self, key: str) -> Any:
        """Return the value of `key`, waiting for it up to the store's timeout."""
        return json.loads(self.torch.get(key))
