"""The arithmetic of reduce ops: which op has a meaning on which dtype, and how two tensors are combined.

* avg is for floating and complex dtypes; min and max have none on complex; band, bor and bxor are for integers
  and bool. On bool, sum and max mean "or", prod and min mean "and". float8 and narrower are only moved.
* Sums, products and averages of 16-bit floats are made in float32 and rounded once, at the end.
* Integers wrap. NaN goes through min and max. The data of the lower rank is always the first operand.
* torch lacks arithmetic on uint16, uint32 and uint64: it is done on signed views of the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import final

import torch

from devices._backend import REDUCE_OPS
from devices.errors import ArgumentError, DtypeError, did_you_mean

_HALF = (torch.float16, torch.bfloat16)
_REAL = (*_HALF, torch.float32, torch.float64)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_INTEGER = (torch.uint8, *_SIGNED, torch.uint16, torch.uint32, torch.uint64)
_BITWISE = ("band", "bor", "bxor")

MEANINGFUL: frozenset[tuple[str, torch.dtype]] = frozenset(
    [(op, dtype) for op in ("sum", "prod") for dtype in (*_REAL, *_COMPLEX, *_INTEGER, torch.bool)]
    + [("avg", dtype) for dtype in (*_REAL, *_COMPLEX)]
    + [(op, dtype) for op in ("min", "max") for dtype in (*_REAL, *_INTEGER, torch.bool)]
    + [(op, dtype) for op in _BITWISE for dtype in (*_INTEGER, torch.bool)]
)
"""The pairs of op and dtype that have a meaning."""

# What torch's own functions get right, and in the precision that we want.
LOCAL = frozenset(
    [(op, dtype) for op in ("sum", "prod") for dtype in (*_REAL[2:], *_COMPLEX[1:], torch.uint8, *_SIGNED)]
    + [(op, dtype) for op in ("min", "max") for dtype in (*_REAL, torch.uint8, *_SIGNED)]
    + [(op, dtype) for op in _BITWISE for dtype in (torch.uint8, *_SIGNED)]
)

COMBINE: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
    "band": torch.bitwise_and,
    "bor": torch.bitwise_or,
    "bxor": torch.bitwise_xor,
}

_SIGNED_VIEW = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
_REAL_VIEW = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
    torch.uint8: torch.int32,
    torch.int8: torch.int32,
    torch.int16: torch.int32,
    torch.int32: torch.int64,
}
_OVER_BOOL = {
    "sum": ("max", "bor"), "max": ("max", "bor"), "bor": ("max", "bor"),
    "prod": ("min", "band"), "min": ("min", "band"), "band": ("min", "band"), "bxor": ("bxor",),
}  # fmt: skip


def check_reduction(op: str, dtype: torch.dtype) -> None:
    """Raise unless `op` has a meaning on `dtype`.

    Raises:
        ArgumentError: there is no such op.
        DtypeError: the op has no meaning on that dtype.

    >>> check_reduction("avg", torch.int32)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    devices.errors.DtypeError: op 'avg' has no meaning on torch.int32, it is for floating and complex dtypes; ...
    """
    if (op, dtype) not in MEANINGFUL:
        raise _why_not(op, dtype)


def _why_not(op: str, dtype: torch.dtype) -> ArgumentError | DtypeError:
    if op not in REDUCE_OPS:
        return ArgumentError(
            f"no reduce op {op!r}{did_you_mean(str(op), REDUCE_OPS) or '.'} Known: {', '.join(REDUCE_OPS)}"
        )
    what = f"op {op!r} has no meaning on {dtype}"
    if not any(meant == dtype for _, meant in MEANINGFUL):
        return DtypeError(f"{dtype} can be moved but not reduced (op {op!r}); convert it to a wider dtype first")
    if op == "avg":
        advice = "take the sum and divide, or convert the tensor"
        return DtypeError(f"{what}, it is for floating and complex dtypes; {advice}")
    if op in _BITWISE:
        return DtypeError(f"{what}, it is for integers and bool; view the tensor as integers to combine its bits")
    return DtypeError(f"{what}: complex numbers have no order; reduce tensor.abs() or torch.view_as_real(tensor)")


def combine(op: str, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
    """Write the reduction of two tensors of a dtype that torch reduces (see `local_carrier`) into `out`."""
    COMBINE[op](first, second, out=out)


@final
@dataclass(frozen=True, slots=True)
class _Hop:
    kind: str
    source: torch.dtype
    target: torch.dtype


@final
@dataclass(frozen=True, slots=True)
class Carrier:
    """Another op and dtype whose reduction yields the one that was asked for.

    Args:
        op: the op to do.
        dtype: the dtype to do it on.
        hops: the way there.
    """

    op: str
    dtype: torch.dtype
    hops: tuple[_Hop, ...] = ()

    @property
    def shares(self) -> bool:
        """Whether `encode` returns a view, so that a reduction in place needs no second tensor."""
        return all(hop.kind in ("view", "divide") for hop in self.hops)

    @property
    def factor(self) -> int:
        """How many elements encode one: 2 for a complex number."""
        return 2 if any(hop.source in _REAL_VIEW and hop.target not in _COMPLEX for hop in self.hops) else 1

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` in the carrier's dtype: a view if `shares`, else a new tensor."""
        if tensor.requires_grad:
            tensor = tensor.detach()
        for hop in self.hops:
            if hop.kind == "view":
                tensor = tensor.view(hop.target)
            elif hop.kind == "convert":
                tensor = tensor.to(hop.target)
            elif hop.kind == "flip":
                tensor = tensor.view(hop.target).bitwise_xor(torch.iinfo(hop.target).min)
        return tensor

    def decode(self, reduced: torch.Tensor, target: torch.Tensor, size: int) -> None:
        """Write what `size` encoded tensors were reduced to into `target`, which it may share; use it up."""
        for hop in reversed(self.hops):
            if hop.kind == "view":
                reduced = reduced.view(hop.source)
            elif hop.kind == "convert":
                reduced = reduced.to(hop.source)
            elif hop.kind == "flip":
                reduced = reduced.bitwise_xor_(torch.iinfo(hop.target).min).view(hop.source)
            else:
                _divide(reduced, size)
        if reduced.data_ptr() != target.data_ptr():
            target.detach().copy_(reduced)


def _divide(total: torch.Tensor, size: int) -> None:
    """Divide a sum by the number of ranks, in place, with the same bits whatever the kind of device it is on.

    Each rank does this for itself, and a group may have ranks on CPUs and on GPUs. By a number, torch's kernels for the
    CPU divide, and those for CUDA multiply by its reciprocal, which may be one bit off; by a tensor of the device both
    divide. The reciprocal of a power of two is exact. A number of ranks may not be one that 16 bits hold.
    """
    if total.device.type == "cpu" or size & (size - 1) == 0:
        total.div_(size)
    elif total.dtype in _HALF:
        total.copy_(total.float().div_(torch.full((), size, dtype=torch.float32, device=total.device)))
    else:
        total.div_(torch.full((), size, dtype=total.dtype, device=total.device))


def _next(op: str, dtype: torch.dtype) -> list[tuple[str, _Hop]]:
    """Return the ops and dtypes that one hop leads to, the best first."""
    if dtype == torch.bool:
        return [(other, _Hop("view", dtype, torch.uint8)) for other in _OVER_BOOL[op]]
    if dtype in _SIGNED_VIEW:
        return [(op, _Hop("flip" if op in ("min", "max") else "view", dtype, _SIGNED_VIEW[dtype]))]
    if dtype in _REAL_VIEW and op != "prod":
        return [(op, _Hop("view", dtype, _REAL_VIEW[dtype]))]
    found = []
    if dtype in _WIDER:
        found.append((op, _Hop("convert", dtype, _WIDER[dtype])))
    if op == "avg":
        # After the wider dtype, so that a mean of 16-bit floats is rounded once.
        found.append(("sum", _Hop("divide", dtype, dtype)))
    return found


@cache
def carriers(op: str, dtype: torch.dtype) -> tuple[Carrier, ...]:
    """Return all ways to a reduction, itself first; `op` must have a meaning on `dtype`."""
    found: dict[tuple[str, torch.dtype], Carrier] = {}

    def visit(carrier: Carrier) -> None:
        key = carrier.op, carrier.dtype
        if key not in found:
            found[key] = carrier
            for other, hop in _next(*key):
                visit(Carrier(other, hop.target, (*carrier.hops, hop)))

    visit(Carrier(op, dtype))
    return tuple(found.values())


@cache
def local_carrier(op: str, dtype: torch.dtype) -> Carrier:
    """Return the way to a reduction that `combine` takes; `op` must have a meaning on `dtype`."""
    return next(carrier for carrier in carriers(op, dtype) if (carrier.op, carrier.dtype) in LOCAL)
