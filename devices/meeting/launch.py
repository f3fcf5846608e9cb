"""Who this thread's rank is, where ranks are threads and no launcher's variables could say so."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import final

import torch.distributed as dist

from devices._choice import Choice


@final
@dataclass(frozen=True, slots=True)
class Launch:
    """What a launcher tells a rank.

    Args:
        rank: this rank.
        size: the number of ranks.
        store: shared by all ranks.
        choice: the backend that the ranks are of, whatever the program asks for.
        note: how the ranks found each other.
    """

    rank: int
    size: int
    store: dist.Store
    choice: Choice
    note: str


_here = threading.local()


def launch() -> Launch | None:
    """Return what this thread was told; None where the process's variables say it."""
    found: Launch | None = getattr(_here, "launch", None)
    return found


def tell(told: Launch) -> None:
    """Let this thread be a rank."""
    _here.launch = told
