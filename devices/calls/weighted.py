"""The weighted mean, for ranks whose batches are of unequal size."""

from __future__ import annotations

import math
from typing import Any

import torch

from devices._work import Work
from devices.algorithms.arithmetic import check_reduction
from devices.calls.groups import GroupLike
from devices.calls.packing import Tensor, Tensors
from devices.calls.verb import Verb
from devices.errors import DevicesError


def weighted_mean(
    x: Tensors, group: GroupLike, op: str, weight: float | Tensor, out: Tensors | None, async_op: bool
) -> Any:
    """Return sum(weight * x) / sum(weight) over the ranks of `group`, the weights added up in the same call.

    The sums are over float32 for 16-bit floats, over `x`'s own dtype else.
    """
    asked = Verb("all_reduce", x, group)
    if op != "avg":
        raise asked.error(f"weight= goes with op='avg', not with op={op!r}")
    for tensor in asked.tensors:
        try:
            check_reduction("avg", tensor.dtype)
        except DevicesError as error:
            raise asked.error(error, type(error)) from None
    if not hasattr(weight, "__float__") or (isinstance(weight, Tensor) and weight.numel() != 1):
        raise asked.error(f"weight= is one number, that of this rank; got {weight!r}")
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise asked.error("weight= requires grad, but the mean is not differentiated by it; pass weight.detach()")
    # Where a device has it, to look at it would be to wait for the device.
    is_here = not isinstance(weight, Tensor) or weight.is_cpu
    if is_here and not (math.isfinite(weight) and weight >= 0):
        raise asked.error(f"weight= must be finite and not negative, got {weight!r}")
    scaled = [tensor.to(_accumulation(tensor.dtype)) * weight for tensor in asked.tensors]
    needs_gradient = any(tensor.requires_grad for tensor in scaled)
    targets = None if out is None else asked.whole(op="avg").check_out(out, needs_gradient=needs_gradient)
    widest = scaled[0].dtype
    for tensor in scaled[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    if is_here:
        own = torch.full((), float(weight), dtype=widest, device=scaled[0].device)
    else:
        own = torch.as_tensor(weight, dtype=widest).reshape(())
    started = Verb("all_reduce", [*scaled, own], group).whole(op="sum").run(None, async_op)

    def finish(sums: list[Tensor]) -> Any:
        total = sums[-1].real
        means = [(added / total).to(tensor.dtype) for added, tensor in zip(sums[:-1], asked.tensors, strict=True)]
        if targets is not None:
            means = [target.copy_(mean) for target, mean in zip(targets, means, strict=True)]
        return asked.rebuild(means)

    return Work(started, lambda: finish(started.result())) if async_op else finish(started)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}.get(
        dtype, dtype
    )
