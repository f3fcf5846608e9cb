"""Tensors in memory that the peers of this host reach directly."""

from __future__ import annotations

import torch

from devices.errors import UnsupportedError
from devices.fabric.host import arena, meeting


def empty(
    *size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None, fabric: bool = False
) -> torch.Tensor:
    """Return a tensor whose elements are not set, as `torch.empty` does, where a collective finds it without a copy.

    An `all_reduce` in place, of a tensor that all ranks of a host have in fabric memory, moves each element the fewest
    times there are: each rank reads the others' tensors where they lie.

    Args:
        size: the shape; several numbers, or one sequence.
        dtype: the default one unless said.
        device: the CPU unless said; fabric memory is the host's.
        fabric: take it from the memory that the processes of this host share. Until it is used it takes none.

    Raises:
        UnsupportedError: there is no such memory here, and why.

    >>> import torch, devices
    >>> x = devices.empty(1000, 1000, fabric=bool(devices.memory_domain())).fill_(1.0)  # where there is such memory
    >>> with devices.init():
    ...     total = devices.all_reduce(x, out=x)
    """
    if not fabric:
        return torch.empty(*size, dtype=dtype, device=device)
    shape = torch.empty(*size, device="meta").shape
    if device is not None and torch.device(device).type != "cpu":
        raise UnsupportedError(f"fabric memory is the host's, and device={str(device)!r} was asked for")
    if reason := meeting.why_not_here():
        raise UnsupportedError(f"there is no fabric memory here: {reason}; leave fabric=True away")
    return arena.empty(shape, dtype or torch.get_default_dtype())
