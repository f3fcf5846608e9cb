"""What each verb must return, from every rank's input, in plain torch and Python: the law, written a second time."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import torch

Tensor = torch.Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)
INTEGERS = (
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
MOVED = (*FLOATS, *COMPLEX, *INTEGERS, torch.bool, *FLOAT8)

BITS = ("band", "bor", "bxor")
REDUCED = (
    *[(op, dtype) for dtype in FLOATS for op in ("sum", "avg", "min", "max", "prod")],
    *[(op, dtype) for dtype in COMPLEX for op in ("sum", "avg", "prod")],
    *[(op, dtype) for dtype in (*INTEGERS, torch.bool) for op in ("sum", "min", "max", "prod", *BITS)],
)


def make(rank: int, shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return a rank's input: any bits at all for what is moved, so NaNs too; numbers for floats of 16 bits and more."""
    chance = torch.Generator().manual_seed(1000 * seed + rank)
    if dtype in (*FLOATS, *COMPLEX):
        return torch.randn(tuple(shape), generator=chance, dtype=torch.complex128).to(dtype) if dtype in COMPLEX else (
            torch.randn(tuple(shape), generator=chance, dtype=torch.float64).to(dtype)
        )  # fmt: skip
    if dtype is torch.bool:
        return torch.rand(tuple(shape), generator=chance) < 0.5
    count = math.prod(shape) * dtype.itemsize
    return torch.randint(256, (count,), generator=chance, dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def same_bits(found: Tensor, expected: Tensor) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return torch.equal(*(tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
                         for tensor in (found, expected)))  # fmt: skip


def reduced(op: str, xs: Sequence[Tensor]) -> Tensor:
    """Return the reduction: by Python's whole numbers for integers, in double precision for the rest."""
    dtype, shape = xs[0].dtype, xs[0].shape
    if dtype in (*FLOATS, *COMPLEX):
        stack = torch.stack([x.to(torch.complex128 if dtype in COMPLEX else torch.float64) for x in xs])
        if op in ("min", "max"):
            return getattr(stack, "a" + op)(0).to(dtype)
        result = stack.prod(0) if op == "prod" else stack.sum(0)
        return (result / len(xs) if op == "avg" else result).to(dtype)
    if dtype is torch.bool:
        logic = {"sum": any, "max": any, "bor": any, "prod": all, "min": all, "band": all}
        fold = logic.get(op, lambda values: bool(sum(values) % 2))
    else:
        folds = {
            "sum": sum, "min": min, "max": max, "prod": math.prod,
            "band": lambda values: functools.reduce(operator.and_, values),
            "bor": lambda values: functools.reduce(operator.or_, values),
            "bxor": lambda values: functools.reduce(operator.xor, values),
        }  # fmt: skip
        fold = lambda values: _wrapped(folds[op](values), dtype)  # noqa: E731
    columns = zip(*[x.reshape(-1).tolist() for x in xs], strict=True)
    return torch.tensor([fold(list(column)) for column in columns], dtype=dtype).reshape(shape)


def _wrapped(value: int, dtype: torch.dtype) -> int:
    info = torch.iinfo(dtype)
    return (value - info.min) % (info.max - info.min + 1) + info.min


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    parts = [part.reshape(1) if part.ndim == 0 else part for part in parts]
    return torch.cat([_raw(part) for part in parts], dim % parts[0].ndim).view(parts[0].dtype).squeeze(-1)


def part_of(x: Tensor, sizes: Sequence[int], rank: int, dim: int) -> Tensor:
    x = x.reshape(1) if x.ndim == 0 else x
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank])


def _raw(x: Tensor) -> Tensor:
    """Return the bytes of each element along a new last dim, for torch joins few dtypes but all bytes."""
    return x.contiguous().unsqueeze(-1).view(torch.uint8)


def even(x: Tensor, ranks: int, dim: int) -> list[int]:
    return [(x.shape[dim] if x.ndim else 1) // ranks] * ranks
