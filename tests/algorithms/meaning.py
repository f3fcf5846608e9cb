"""What verbs mean, in plain torch and plain Python: the expected values of all tests here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
INTEGERS = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64
)  # fmt: skip
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

MEANT = [
    (op, dtype)
    for dtypes, ops in (
        (FLOATS, ("sum", "avg", "min", "max", "prod")),
        (COMPLEX, ("sum", "avg", "prod")),
        ((*INTEGERS, torch.bool), ("sum", "min", "max", "prod", "band", "bor", "bxor")),
    )
    for op in ops
    for dtype in dtypes
]
"""Every op on every dtype that it is for."""

_ON_INTEGERS = {
    "sum": sum, "prod": math.prod, "min": min, "max": max,
    "band": lambda column: reduce(int.__and__, column),
    "bor": lambda column: reduce(int.__or__, column),
    "bxor": lambda column: reduce(int.__xor__, column),
}  # fmt: skip
_ON_BOOL = {
    "sum": any, "max": any, "bor": any, "prod": all, "min": all, "band": all,
    "bxor": lambda column: sum(column) % 2 == 1,
}  # fmt: skip


def values(numel: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return numbers whose sums and products are exact in floating dtypes, and reach all bits of integers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (numel,), generator=generator)

    if dtype == torch.bool:
        return draw(0, 2).bool()
    if dtype in INTEGERS:
        return _bits(numel * dtype.itemsize, generator).view(dtype)
    if dtype.is_complex:
        half = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}[dtype]
        return torch.stack([draw(-1, 2), draw(-1, 2)], 1).to(half).flatten().view(dtype)
    if dtype in FLOAT8:
        return _bits(numel, generator).view(dtype)
    return draw(-2, 3).to(dtype)


def _bits(numel: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (numel,), generator=generator, dtype=torch.uint8)


def reduced(op: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the reduction of tensors."""
    dtype = tensors[0].dtype
    if dtype == torch.bool:
        columns: Any = zip(*(tensor.tolist() for tensor in tensors), strict=True)
        return torch.tensor([_ON_BOOL[op](column) for column in columns], dtype=dtype)
    if dtype in INTEGERS:
        columns = zip(*(tensor.tolist() for tensor in tensors), strict=True)
        bits = torch.iinfo(dtype).bits
        numbers = [_ON_INTEGERS[op](column) % (1 << bits) for column in columns]
        signed = [number - (1 << bits) if number >> (bits - 1) else number for number in numbers]
        as_signed = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
        return torch.tensor(signed, dtype=as_signed).view(dtype)
    wide = torch.stack([widened(tensor) for tensor in tensors])
    if op in ("sum", "prod"):
        return narrowed(getattr(wide, op)(0), dtype)
    if op == "avg":
        total = wide.sum(0)
        plain = torch.view_as_real(total) if dtype.is_complex else total
        plain /= len(tensors)
        return narrowed(total, dtype)
    return narrowed(wide.amin(0) if op == "min" else wide.amax(0), dtype)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_complex:
        return (
            torch.view_as_complex(torch.view_as_real(tensor).double())
            if tensor.numel()
            else tensor.to(torch.complex128)
        )
    return tensor.double()


def narrowed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_complex:
        half = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}[dtype]
        return torch.view_as_real(tensor).to(half).flatten().view(dtype)
    return tensor.to(dtype)


def same(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two tensors have the same dtype and values; 0 and -0 are one, as are all NaNs."""
    if tensor.dtype != expected.dtype or tensor.shape != expected.shape:
        return False
    if tensor.dtype.is_floating_point and tensor.dtype not in FLOAT8:
        return torch.equal(tensor.double().nan_to_num(1e300), expected.double().nan_to_num(1e300))
    if tensor.dtype.is_complex:
        return same(torch.view_as_real(tensor).flatten(), torch.view_as_real(expected).flatten())
    return same_bits(tensor, expected)


def same_bits(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    return tensor.dtype == expected.dtype and torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8))
