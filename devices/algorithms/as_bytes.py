"""Tensors as the communicator takes them, and what a verb over one rank does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devices._backend import Pending
from devices.algorithms.started import DONE


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype is torch.uint8 else tensor.view(torch.uint8)


def scaled(counts: Sequence[int], tensor: torch.Tensor) -> list[int]:
    """Return counts of bytes for counts of elements."""
    width = tensor.element_size()
    return [count * width for count in counts]


def copy_alone(source: torch.Tensor, target: torch.Tensor) -> Pending:
    """Do a verb over a group of one."""
    if source.data_ptr() != target.data_ptr():
        target.detach().copy_(source.detach())
    return DONE
