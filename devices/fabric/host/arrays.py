"""Tensors as numpy arrays over the same memory: numpy copies twice as fast as torch, and its small calls cost less."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from devices.algorithms.arithmetic import COMBINE

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Combine = Callable[[Array, Array, Array], object]
"""Writes the reduction of two arrays, the lower rank's first, into a third, which may be one of them."""

_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def array_of(tensor: torch.Tensor) -> Array:
    """Return the memory of a flat, contiguous CPU tensor; of bfloat16, which numpy lacks, as bits."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def tensor_of(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Return the memory of a flat array as a tensor of `dtype`."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if tensor.dtype != dtype else tensor


def split(array: Array, size: int) -> list[Array]:
    """Return `size` parts of an array, as equal as whole cache lines allow."""
    line = max(64 // array.dtype.itemsize, 1)
    each = -(-array.size // size // line) * line if array.size >= size * line else -(-array.size // size)
    return [array[at * each : (at + 1) * each] for at in range(size)]


@cache
def combine(op: str, dtype: torch.dtype) -> Combine:
    """Return what reduces arrays of a dtype that `arithmetic.LOCAL` has with `op`, as torch does."""
    if dtype is torch.bfloat16:
        in_torch = COMBINE[op]

        def reduce(first: Array, second: Array, out: Array) -> None:
            whole = [tensor_of(each, dtype) for each in (first, second, out)]
            in_torch(whole[0], whole[1], out=whole[2])

        return reduce
    ufunc = _UFUNCS[op]

    def quietly(first: Array, second: Array, out: Array) -> None:
        # Overflows and NaNs are the program's to look for; torch says nothing of them either.
        with np.errstate(all="ignore"):
            ufunc(first, second, out=out)

    return quietly
