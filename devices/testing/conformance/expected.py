"""What a verb must return, by plain torch and numpy on the CPU; nothing of `devices` takes part in the answer.

What only moves data, and what reduces integers, bool, minima and maxima, is right to the bit (but for the sign of a
zero and the bits of a NaN, which minima and maxima of floats do not fix). Integers wrap. Sums, products and averages
of floats are computed in numpy's long double, and may differ from that by:

* u * |result|, for the one rounding to the dtype: u is half of the dtype's `eps`;
* for each of the n ranks that adds, one rounding more, in the dtype that it is added up in, which is float32 for floats
  of 16 bits: (n - 1) * w * sum(|x|), where w is half of that dtype's `eps`, whatever the order is. An average has one
  more of these, for its division. A product has (n - 1) * w * |result|, a complex one three times as many;
* the smallest number of the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from devices.testing.conformance.calls import Call

_BITWISE = ("band", "bor", "bxor")
_OPS = ("sum", "avg", "min", "max", "prod", *_BITWISE)


def has_meaning(op: str, dtype: torch.dtype) -> bool:
    """Return whether a reduction has a meaning: which is to work wherever the dtype is.

    >>> has_meaning("avg", torch.int32), has_meaning("max", torch.complex64), has_meaning("sum", torch.bool)
    (False, False, True)
    """
    if dtype.is_complex:
        return op in ("sum", "avg", "prod")
    if dtype.is_floating_point:
        # Narrower ones are only moved.
        return dtype.itemsize > 1 and op in ("sum", "avg", "min", "max", "prod")
    return op in _OPS and op != "avg"


@final
@dataclass(frozen=True)
class Answer:
    """What a rank must get.

    Args:
        bits: the very tensor, where it is right to the bit; of float minima and maxima but for zeros and NaNs.
        value: in higher precision, where it is not.
        bound: how far each element may be from `value`.
        dtype: of the result.
        is_moved: whether each bit counts, those of a NaN too.
    """

    bits: torch.Tensor | None
    value: Any
    bound: Any
    dtype: torch.dtype
    is_moved: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(self.bits.shape if self.bits is not None else self.value.shape)

    def wrong(self, found: object) -> str:
        """Return what is wrong with what was found; "" if nothing is."""
        if not isinstance(found, torch.Tensor):
            return f"found {found!r}, expected a tensor of shape {self.shape} and dtype {self.dtype}"
        if found.dtype != self.dtype or tuple(found.shape) != self.shape:
            return (
                f"found a tensor of shape {tuple(found.shape)} and dtype {found.dtype}, expected {self.shape} and "
                f"{self.dtype}"
            )
        here = found.detach().cpu()
        at = self.places(here)
        if not at:
            return ""
        said = ", ".join(f"[{place}] is {_item(here, place)}, expected {self.item(place)}" for place in at[:3])
        return f"{len(at)} of {here.numel()} elements are wrong: flat {said}{', ...' if len(at) > 3 else ''}"

    def places(self, found: torch.Tensor) -> list[int]:
        """Return the flat places at which `found`, of the right shape and dtype, is wrong."""
        if not found.numel():
            return []
        found = found.detach().cpu()
        if self.bits is None:
            there = _long(found)
            with np.errstate(all="ignore"):
                near = np.isfinite(self.value) & (np.abs(there - self.value) <= self.bound)
                same = (there == self.value) | (np.isnan(there) & np.isnan(self.value))
            right = near | same
        elif self.is_moved or not self.dtype.is_floating_point:
            width = self.dtype.itemsize
            rows = [in_order(tensor).view(torch.uint8).view(-1, width).numpy() for tensor in (found, self.bits)]
            right = (rows[0] == rows[1]).all(1)
        else:
            two = [_long(tensor) for tensor in (found, self.bits)]
            right = (two[0] == two[1]) | (np.isnan(two[0]) & np.isnan(two[1]))
        return [int(place) for place in np.flatnonzero(~right.reshape(-1))]

    def item(self, place: int) -> str:
        """Return what is expected at a flat place, in words."""
        if self.bits is not None:
            return _item(self.bits, place)
        value, bound = self.value.reshape(-1)[place], self.bound.reshape(-1)[place]
        said = complex(value) if self.dtype.is_complex else float(value)
        return f"{said!r} within {float(bound):.2g}"


def answer(call: Call, xs: Sequence[torch.Tensor], rank: int) -> Answer | None:
    """Return what `rank` of a group must get if its ranks give `xs` to a call; None where that is nothing.

    Args:
        call: the verb.
        xs: what each rank of the group gives, on the CPU.
        rank: of the group.
    """
    size, verb, dim = len(xs), call.verb, call.dim
    root = call.root % size
    if verb == "barrier" or (verb in ("reduce", "gather") and rank != root):
        return None
    if verb in ("all_reduce", "reduce"):
        return reduced(call.op, xs)
    if verb == "reduce_scatter":
        return reduced(call.op, [_part(x, dim, call.part_sizes(size), rank) for x in xs])
    if verb in ("all_gather", "gather"):
        return _moved(torch.stack(list(xs)) if not call.shape else _joined(xs, dim))
    if verb == "scatter":
        return _moved(_part(xs[root], dim, call.part_sizes(size), rank))
    if verb == "all_to_all":
        sizes = call.swapped_sizes(size)
        return _moved(_joined([_part(x, dim, sizes[source], rank) for source, x in enumerate(xs)], dim))
    if verb == "broadcast":
        return _moved(xs[root])
    if verb == "permute":
        came = [source for source, to in call.pairs(size) if to == rank]
        return _moved(xs[came[0]] if came else torch.zeros(xs[rank].shape, dtype=xs[rank].dtype))
    source, to = call.ends(size)
    return _moved(xs[source]) if rank == to else None


def reduced(op: str, xs: Sequence[torch.Tensor]) -> Answer:
    """Return the reduction of `xs`, which are of one shape and dtype."""
    dtype, count = xs[0].dtype, len(xs)
    if not dtype.is_floating_point and not dtype.is_complex:
        return Answer(_whole_numbers(op, xs), None, None, dtype)
    stack = np.stack([_long(x) for x in xs])
    with np.errstate(all="ignore"):
        if op in ("min", "max"):
            found = np.asarray((np.minimum if op == "min" else np.maximum).reduce(stack))
            return Answer(torch.from_numpy(found.astype(np.float64)).to(dtype).view(xs[0].shape), None, None, dtype)
        rounding, working = _roundings(dtype)
        complexity = 3 if dtype.is_complex else 1
        if op == "prod":
            value = np.multiply.reduce(stack)
            bound = complexity * (count - 1) * working * np.abs(value)
        else:
            value, most = np.add.reduce(stack), np.add.reduce(np.abs(stack))
            if op == "avg":
                value, most = value / count, most / count
            bound = complexity * (count - 1 + (op == "avg")) * working * most
        # A little more, for the product of two roundings and for those of the long double.
        bound = 1.01 * (bound + rounding * np.abs(value)) + complexity * _smallest(dtype)
        bound = np.where(np.isfinite(value), bound, np.longdouble(0))
    return Answer(None, np.asarray(value), np.asarray(bound), dtype)


def _roundings(dtype: torch.dtype) -> tuple[Any, Any]:
    """Return half of the `eps` of a dtype, and of that which its sums are made in."""
    bits = dtype.itemsize * 8 // (2 if dtype.is_complex else 1)
    working = torch.finfo(torch.float64 if bits == 64 else torch.float32).eps / 2
    if bits == 64:
        # Where numpy has no wider one, its own roundings count too.
        working += float(np.finfo(np.longdouble).eps) / 2
    return np.longdouble(torch.finfo(dtype).eps / 2), np.longdouble(working)


def _smallest(dtype: torch.dtype) -> Any:
    """Return the smallest number above zero that a dtype has."""
    limits = torch.finfo(dtype)
    return np.longdouble(limits.tiny) * np.longdouble(limits.eps)


def _whole_numbers(op: str, xs: Sequence[torch.Tensor]) -> torch.Tensor:
    stack = np.stack([x.contiguous().numpy() for x in xs])
    if stack.dtype == np.bool_:
        meant = {"sum": "any", "max": "any", "bor": "any", "prod": "all", "min": "all", "band": "all"}.get(op)
        found = np.logical_xor.reduce(stack) if meant is None else getattr(stack, meant)(axis=0)
    elif op in ("sum", "prod"):
        # Whatever is cut off at 64 bits is cut off at fewer.
        wide = stack.astype(np.uint64) if stack.dtype.kind == "u" else stack.astype(np.int64).view(np.uint64)
        found = (np.add if op == "sum" else np.multiply).reduce(wide).astype(stack.dtype)
    else:
        function = {
            "min": np.minimum, "max": np.maximum, "band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor,
        }[op]  # fmt: skip
        found = function.reduce(stack)
    return torch.from_numpy(np.ascontiguousarray(found)).view(xs[0].dtype).view(xs[0].shape)


def _long(x: torch.Tensor) -> Any:
    """Return a float or complex tensor in numpy's highest precision."""
    if x.is_complex():
        return x.resolve_conj().to(torch.complex128).numpy().astype(np.clongdouble)
    return x.to(torch.float64).numpy().astype(np.longdouble)


def _moved(x: torch.Tensor) -> Answer:
    return Answer(in_order(x).view(x.shape), None, None, x.dtype, is_moved=True)


def in_order(x: torch.Tensor) -> torch.Tensor:
    """Return a flat copy whose elements lie one after another."""
    return x.resolve_conj().clone(memory_format=torch.contiguous_format).view(-1)


def _joined(xs: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    # torch.cat has no uint16 and passes over an empty vector; slices of bytes have neither fault.
    at = dim % xs[0].ndim
    shape = list(xs[0].shape)
    shape[at] = sum(x.shape[at] for x in xs)
    result, place = torch.empty(shape, dtype=xs[0].dtype), 0
    for x in xs:
        result.narrow(at, place, x.shape[at]).copy_(x)
        place += x.shape[at]
    return result


def _part(x: torch.Tensor, dim: int, sizes: Sequence[int], rank: int) -> torch.Tensor:
    return x.narrow(dim % x.ndim, sum(sizes[:rank]), sizes[rank])


def _item(x: torch.Tensor, place: int) -> str:
    flat = x.reshape(-1)[place]
    return str(flat.float().item() if flat.dtype.itemsize == 1 and flat.is_floating_point() else flat.item())
