"""Reads what torch hands to a process group: options objects, lists of tensors, tensors of any shape and stride."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from devices import _torch
from devices._backend import Group
from devices.algorithms.arithmetic import MEANINGFUL
from devices.errors import ArgumentError

Tensor = torch.Tensor
OneOrMore = Tensor | Sequence[Tensor]
T = TypeVar("T")

SUM = dist.ReduceOp.SUM
SUMMED = frozenset(dtype for op, dtype in MEANINGFUL if op == "sum")


def op_and_factor(opts: Any) -> tuple[str, Any]:
    """Return our reduce op, and the factor of a premultiplied sum; `opts` are options or an op itself."""
    op = getattr(opts, "reduceOp", opts)
    if op is None or op == SUM:
        return "sum", None
    name = _torch.reduce_op_name(op)
    return ("sum", _torch.premul_factor(op)) if name == "premul" else (name, None)


def root_rank(opts: Any) -> int:
    """Return the group's rank that is the root; `opts` are options or the rank itself."""
    root: int = getattr(opts, "rootRank", opts)
    return root


def asks_async(opts: Any) -> bool:
    # Who passes no options waits for the work.
    is_async: bool = getattr(opts, "asyncOp", True)
    return is_async


def listed(tensors: OneOrMore) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors


def only(tensors: Sequence[Tensor]) -> Tensor:
    """Return the one tensor of a list that torch once meant for several devices in a process."""
    if len(tensors) != 1:
        raise ArgumentError(f"a list of one tensor is wanted, got {len(tensors)}; the coalesced verbs take several")
    return tensors[0]


def plain(tensor: Tensor) -> Tensor:
    """Return `tensor` as autograd does not see it: torch's verbs write through, whatever requires grad."""
    return tensor.detach() if tensor.requires_grad else tensor


def flattened(tensor: Tensor) -> Tensor:
    return plain(tensor).reshape(-1)


def flattened_in_place(tensor: Tensor) -> tuple[Tensor, Callable[[], object] | None]:
    """Return a flat tensor to write to, and how to bring a non-contiguous tensor its content afterwards."""
    if tensor.is_contiguous():
        return tensor.view(-1), None
    flat = tensor.reshape(-1)
    return flat, lambda: tensor.copy_(flat.view(tensor.shape))


def row_counts(group: Group, which: str, tensor: Tensor, splits: Sequence[int] | None) -> list[int]:
    """Return elements per rank for torch's split sizes, which count rows of dim 0; equal ones if there are none."""
    size, rows = group.size, tensor.shape[0] if tensor.ndim else 1
    if not splits:
        if rows % size:
            raise ArgumentError(
                f"{group}: all_to_all without split sizes needs an {which} whose dim 0 the {size} ranks "
                f"divide, but it has size {rows}"
            )
        splits = [rows // size] * size
    if len(splits) != size or sum(splits) != rows:
        raise ArgumentError(
            f"{group}: all_to_all's {which} split sizes must be {size}, one for each rank, adding up to the "
            f"{rows} rows of dim 0; got {list(splits)}"
        )
    row = tensor.shape[1:].numel()
    return [split * row for split in splits]


def unpack(flat: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the pieces of `flat`, one after another, into `targets`."""
    parts = flat.split([target.numel() for target in targets])
    for target, part in zip(targets, parts, strict=True):
        plain(target).copy_(part.view(target.shape))


def unpack_columns(rows: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the columns of `rows`, one row for each rank, into `targets`."""
    columns = rows.split([target.numel() // rows.shape[0] for target in targets], dim=1)
    for target, column in zip(targets, columns, strict=True):
        plain(target).copy_(column.reshape(target.shape))


def alike(items: Iterable[T], tensors: Sequence[Tensor]) -> list[list[T]]:
    """Return `items`, of which each goes with a tensor, in lists of one dtype and device type each."""
    found: dict[tuple[torch.dtype, str], list[T]] = {}
    for item, tensor in zip(items, tensors, strict=True):
        found.setdefault((tensor.dtype, tensor.device.type), []).append(item)
    return list(found.values())
