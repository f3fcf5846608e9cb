"""Verbs over one plain tensor, split and joined along dim 0: what most calls are, at the least cost.

Each returns `NOT_PLAIN` before anything is sent where the call is of another kind, or is wrong: `Verb` packs and copies
what lies otherwise, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.autograd.graph import increment_version

from devices.algorithms.arithmetic import MEANINGFUL
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.observed import AnyVerbs
from devices.calls.groups import GroupLike, verbs_over
from devices.calls.packing import Tensor, Tensors

NOT_PLAIN: Final = object()
"""What is returned where a call is for `Verb`."""

_is_compiling = torch.compiler.is_compiling
_STRIDED = torch.strided


def is_plain(x: object) -> bool:
    """Return whether a verb may work on the memory of `x` as it lies there."""
    return (
        # First: of what is traced not all of the rest can be asked.
        not _is_compiling()
        and type(x) is Tensor
        and not x.requires_grad
        and x.layout is _STRIDED
        and x.is_contiguous()
        # Of one element torch calls any stride contiguous, but does not view all of them as bytes.
        and (x.numel() > 1 or (x.ndim == 1 and x.stride(0) == 1 and x.numel() == 1))
        and not x.is_conj()
        and not x.is_neg()
    )


def broadcast(x: Any, group: GroupLike, src: int, out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    is_given = verbs.group.rank == src
    if type(src) is not int or not 0 <= src < verbs.group.size:
        return NOT_PLAIN
    if (result := _like(x, out)) is None:
        return NOT_PLAIN
    if is_given and result is not x:
        result.copy_(x)
    verbs.broadcast(flat(result), src)
    return result


def reduce(x: Any, group: GroupLike, dst: int, op: str, out: Tensors | None) -> Any:
    if not is_plain(x) or (op, x.dtype) not in MEANINGFUL:
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if type(dst) is not int or not 0 <= dst < verbs.group.size:
        return NOT_PLAIN
    if verbs.group.rank != dst:
        # Nothing is written there.
        verbs.reduce(flat(x), dst, op)
        return None
    if (result := _like(x, out)) is None:
        return NOT_PLAIN
    if result is not x:
        result.copy_(x)
    verbs.reduce(flat(result), dst, op)
    return result


def all_gather(x: Any, group: GroupLike, out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if (result := result_like(x, _joined(x, verbs.group.size), out)) is None:
        return NOT_PLAIN
    verbs.all_gather(flat(result), flat(x))
    return result


def gather(x: Any, group: GroupLike, dst: int, out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if type(dst) is not int or not 0 <= dst < verbs.group.size:
        return NOT_PLAIN
    if verbs.group.rank != dst:
        verbs.gather(None, flat(x), dst)
        return None
    if (result := result_like(x, _joined(x, verbs.group.size), out)) is None:
        return NOT_PLAIN
    verbs.gather(flat(result), flat(x), dst)
    return result


def reduce_scatter(x: Any, group: GroupLike, op: str, out: Tensors | None) -> Any:
    if not is_plain(x) or (op, x.dtype) not in MEANINGFUL:
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    length, left = divmod(x.shape[0], verbs.group.size)
    if left or (result := result_like(x, (length, *x.shape[1:]), out)) is None:
        return NOT_PLAIN
    verbs.reduce_scatter(flat(result), flat(x), op)
    return result


def all_to_all(x: Any, group: GroupLike, out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if x.shape[0] % verbs.group.size or (result := result_like(x, x.shape, out)) is None:
        return NOT_PLAIN
    verbs.all_to_all(flat(result), flat(x))
    return result


def permute(x: Any, group: GroupLike, pairs: Sequence[tuple[int, int]], out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    rank, size = verbs.group.rank, verbs.group.size
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    for ranks in (sources, targets):
        if not all(type(each) is int and 0 <= each < size for each in ranks) or len(set(ranks)) < len(ranks):
            return NOT_PLAIN
    if (result := result_like(x, x.shape, out)) is None:
        return NOT_PLAIN
    ways = tuple(zip(sources, targets, strict=True))
    if rank in targets:
        verbs.permute(flat(result), flat(x), ways)
        return result
    verbs.permute(None, flat(x), ways)
    return result.zero_()


def send(x: Any, group: GroupLike, dst: int, tag: int) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if not _is_message(verbs, dst, tag):
        return NOT_PLAIN
    verbs.send(flat(x), dst, tag)
    return None


def recv(x: Any, group: GroupLike, src: int, tag: int, out: Tensors | None) -> Any:
    if not is_plain(x):
        return NOT_PLAIN
    verbs = verbs_over(group, x)
    if not _is_message(verbs, src, tag):
        return NOT_PLAIN
    if (result := _like(x, out)) is None:
        return NOT_PLAIN
    verbs.recv(flat(result), src, tag)
    return result


def _is_message(verbs: AnyVerbs, peer: int, tag: int) -> bool:
    group = verbs.group
    return (
        type(peer) is int
        and 0 <= peer < group.size
        and peer != group.rank
        and type(tag) is int
        and 0 <= tag < COLLECTIVE_TAG
    )


def flat(x: Tensor) -> Tensor:
    return x if x.ndim == 1 else x.view(-1)


def _joined(x: Tensor, size: int) -> tuple[int, ...]:
    return x.shape[0] * size, *x.shape[1:]


def _like(x: Tensor, out: Tensors | None) -> Tensor | None:
    """Return what `result_like` does for a result of the shape of `x`, which may be `x` itself."""
    if out is x:
        increment_version(x)
        return x
    return result_like(x, x.shape, out)


def result_like(x: Tensor, shape: Sequence[int], out: Tensors | None) -> Tensor | None:
    """Return what is to hold the result of `x`, a new tensor or `out`; None if that is not plain memory of its own.

    That `out` changes is counted, as torch counts what is done in place: a gradient that has saved it, and a verb under
    way that reads it, then raise.
    """
    if out is None:
        return x.new_empty(shape)
    if (
        isinstance(out, Tensor)
        and is_plain(out)
        and out.shape == shape
        and out.dtype is x.dtype
        and out.device.type == x.device.type
        and out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    ):
        increment_version(out)
        return out
    return None
