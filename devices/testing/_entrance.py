"""The verb as the program called it, with the tensors that it was given, found on the stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FrameType

import torch

_ENTRANCES = ("devices/_collectives.py", "torch/distributed/distributed_c10d.py")
"""Where the verbs are that programs call."""


def entrance(frame: FrameType | None) -> str | None:
    """Return, from `frame` outwards, the outermost call of a verb in words; None if there is none."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.endswith(_ENTRANCES):
            code = frame.f_code
            given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
            found = f"{code.co_name}({', '.join(_tensors(given))})"
        frame = frame.f_back
    return found


def _tensors(values: Sequence[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value[:8])
