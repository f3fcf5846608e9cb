"""The weighted mean, for ranks whose batches are of unequal size."""

from __future__ import annotations

import math
from typing import Any

import torch

from devices import _packing
from devices._groups import GroupLike
from devices._packing import Tensor, Tensors
from devices._verb import Verb
from devices._work import Work
from devices.algorithms.arithmetic import check_reduction
from devices.errors import ArgumentError


def weighted_mean(
    x: Tensors, group: GroupLike, op: str, weight: float, out: Tensors | None, async_op: bool
) -> Any:
    """Return sum(weight * x) / sum(weight) over the ranks of `group`.

    The sums are over float32 for 16-bit floats, over `x`'s own dtype else; the weights' own sum is over float64
    where the device has it.
    """
    if op != "avg":
        raise ArgumentError(f"weight= goes with op='avg', not with op={op!r}")
    tensors, rebuild = _packing.unwrap(x, "all_reduce")
    for tensor in tensors:
        check_reduction("avg", tensor.dtype)
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ArgumentError("weight= requires grad, but the mean is not differentiated by it; pass weight.detach()")
    if not (math.isfinite(weight) and weight >= 0):
        raise ArgumentError(f"weight= must be finite and not negative, got {weight!r}")
    total = _sum_of(weight, group, tensors[0].device)
    scaled = [tensor.to(_accumulation(tensor.dtype)) * weight for tensor in tensors]
    verb = Verb("all_reduce", scaled, group).whole("all_reduce", op="sum")
    targets = None if out is None else verb.check_out(out, [tensor.dtype for tensor in tensors])
    if targets is not None and any(tensor.requires_grad for tensor in scaled):
        raise verb.error("out= was given, but the input requires grad; leave out= away, or detach() it")
    started = verb.run(None, async_op)

    def finish(sums: list[Tensor]) -> Any:
        means = [(summed / total).to(tensor.dtype) for summed, tensor in zip(sums, tensors, strict=True)]
        if targets is not None:
            means = [target.copy_(mean) for target, mean in zip(targets, means, strict=True)]
        return rebuild(means)

    return Work(started, lambda: finish(started.result())) if async_op else finish(started)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _sum_of(weight: float, group: GroupLike, device: torch.device) -> Tensor | float:
    verb = Verb("all_reduce", torch.tensor([float(weight)], dtype=torch.float64, device=device), group)
    total: Tensor = verb.whole("all_reduce", op="sum").run(None, False)
    if torch.compiler.is_compiling():
        return total
    if total.item() == 0:
        raise ArgumentError("weight= is zero on every rank, so there is no mean")
    return total.item()
