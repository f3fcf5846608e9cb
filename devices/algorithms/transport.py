"""What the lowerings stand on: a communicator, seen from one rank of its group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

from devices._backend import Communicator


@final
@dataclass(frozen=True, slots=True)
class Transport:
    """A communicator of more than one rank.

    Args:
        communicator: carries everything.
        rank: this rank in the group.
        size: the number of ranks.
        device: the device that the rank's tensors live on.
        reductions: what the communicator reduces by itself, as its capabilities declare.
    """

    communicator: Communicator
    rank: int
    size: int
    device: torch.device
    reductions: Mapping[str, frozenset[torch.dtype]]

    def reduces(self, op: str, dtype: torch.dtype) -> bool:
        """Return whether the communicator's own reductions take that op and dtype."""
        return dtype in self.reductions.get(op, ())
