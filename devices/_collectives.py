"""The verbs: functional, differentiable, the same on every backend.

All take a tensor, or a list, tuple or dict of tensors, which is done in one call for each dtype in it, and a
`group`: a mesh axis (`mesh["tp"]`), a process group, or None for the world. `src` and `dst` are ranks of that
group. All return new tensors and leave their input unchanged. Keywords that most share:

    out: tensors to hold the result, in the container of the input, of its shapes and dtypes; not requiring grad.
    async_op: return a `Work` at once, whose `result()` waits and returns what the verb would have returned.

Gradients are those of the sum over ranks of each rank's loss, as in torch's functional collectives. Whether an
input requires grad must agree on all ranks. Each verb raises, before anything is sent, `ArgumentError` for shapes,
sizes, ranks and ops that cannot be right, `DtypeError` for a dtype that the op has no meaning for, `MeshError` for a
mesh of several axes and `WorldError` without an open world; and `CollectiveError` if it fails on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from devices._backend import REDUCE_OPS
from devices._work import Work
from devices.algorithms.arithmetic import MEANINGFUL
from devices.calls import quick
from devices.calls.compiled import compiled_barrier
from devices.calls.flat import Call, differentiable
from devices.calls.groups import GroupLike, compiled_group, own_verbs, verbs_over
from devices.calls.packing import Tensor, Tensors
from devices.calls.quick import NOT_PLAIN, is_plain
from devices.calls.scatter import scatter as scattered
from devices.calls.verb import Verb
from devices.calls.weighted import weighted_mean
from devices.errors import UnsupportedError

_is_compiling = torch.compiler.is_compiling

_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
_ALL_REDUCE = {op: Call("all_reduce", op) for op in REDUCE_OPS}


def all_reduce(
    x: Tensors,
    group: GroupLike = None,
    *,
    op: str = "sum",
    weight: float | Tensor | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return the reduction of every rank's `x`, the same bits on every rank.

    Args:
        x: of one shape and dtype on all ranks. 16-bit floats are added up in float32 and rounded once.
        group: a mesh axis, a process group, or None for the world.
        op: "sum", "avg", "min", "max", "prod", or, on integers and bool, "band", "bor", "bxor".
        weight: with "avg", this rank's weight in the mean sum(weight * x) / sum(weight): its number of samples,
            say, where ranks have unequal batches. Not negative, and not zero on every rank; a tensor on an
            accelerator is not looked at.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.all_reduce(torch.tensor([1.0, 2.0]), op="max")
    tensor([1., 2.])
    """
    if weight is not None:
        return weighted_mean(x, group, op, weight, out, async_op)
    if (
        out is None
        and isinstance(x, Tensor)
        and type(x) in _PLAIN
        and (op, x.dtype) in MEANINGFUL
        and x.layout is _STRIDED
        and not async_op
        and not _is_compiling()
    ):
        # The common case, at the least cost.
        verbs, call = verbs_over(group, x), _ALL_REDUCE[op]
        if x.requires_grad and torch.is_grad_enabled():
            return differentiable(x, call, verbs, [])
        return call.start(verbs, x, None, async_op=False)[1]
    if out is x and isinstance(x, Tensor) and not async_op and is_plain(x) and (op, x.dtype) in MEANINGFUL:
        # In place, with nothing to pack or to copy.
        increment_version(x)
        verbs_over(group, x).all_reduce(x if x.ndim == 1 else x.view(-1), op)
        return x
    return Verb("all_reduce", x, group).whole(op=op).run(out, async_op)


def all_gather(
    x: Tensors,
    group: GroupLike = None,
    *,
    dim: int = 0,
    sizes: Sequence[int] | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return every rank's `x`, concatenated along `dim` in rank order; scalars become a vector.

    Args:
        x: of one shape on all ranks, unless `sizes` says otherwise.
        group: a mesh axis, a process group, or None for the world.
        dim: the dim along which to concatenate.
        sizes: the size of each rank's `x` along `dim`; every rank passes the same.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.all_gather(torch.tensor([[1, 2]]), dim=1)
    tensor([[1, 2]])
    """
    if dim == 0 and sizes is None and not async_op and (done := quick.all_gather(x, group, out)) is not NOT_PLAIN:
        return done
    verb = Verb("all_gather", x, group)
    return verb.parts(dim, verb.joined(sizes)).run(out, async_op)


def reduce_scatter(
    x: Tensors,
    group: GroupLike = None,
    *,
    op: str = "sum",
    dim: int = 0,
    sizes: Sequence[int] | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return this rank's part, along `dim`, of the reduction of every rank's `x`.

    Args:
        x: of one shape on all ranks; its size along `dim` is split evenly, unless `sizes` says otherwise.
        group: a mesh axis, a process group, or None for the world.
        op: as for `all_reduce`.
        dim: the dim along which to split.
        sizes: the size of each rank's part along `dim`; every rank passes the same.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.reduce_scatter(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if (
        dim == 0
        and sizes is None
        and not async_op
        and (done := quick.reduce_scatter(x, group, op, out)) is not NOT_PLAIN
    ):
        return done
    verb = Verb("reduce_scatter", x, group)
    return verb.parts(dim, verb.split(sizes), op=op).run(out, async_op)


def all_to_all(
    x: Tensors,
    group: GroupLike = None,
    *,
    dim: int = 0,
    sizes: Sequence[Sequence[int]] | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Send part j of `x` along `dim` to rank j; return what came from every rank, concatenated along `dim`.

    Args:
        x: split evenly, unless `sizes` says otherwise.
        group: a mesh axis, a process group, or None for the world.
        dim: the dim along which to split and to concatenate.
        sizes: `sizes[i][j]` is the size along `dim` of what rank i sends to rank j; every rank passes the same.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.all_to_all(torch.tensor([1, 2]))
    tensor([1, 2])
    """
    if dim == 0 and sizes is None and not async_op and (done := quick.all_to_all(x, group, out)) is not NOT_PLAIN:
        return done
    verb = Verb("all_to_all", x, group)
    shares, told = verb.swapped(sizes), tuple(size for row in sizes or () for size in row)
    return verb.parts(dim, shares, is_even=sizes is None, sizes=told).run(out, async_op)


def broadcast(
    x: Tensors, group: GroupLike = None, *, src: int = 0, out: Tensors | None = None, async_op: bool = False
) -> Any:
    """Return rank `src`'s `x` on every rank.

    Args:
        x: read on `src`; elsewhere it gives the shape and dtype, which are those of `src`.
        group: a mesh axis, a process group, or None for the world.
        src: the group's rank to take it from.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.broadcast(torch.tensor([1, 2]), src=0)
    tensor([1, 2])
    """
    if not async_op and (done := quick.broadcast(x, group, src, out)) is not NOT_PLAIN:
        return done
    verb = Verb("broadcast", x, group)
    return verb.whole(root=verb.check_rank("src", src)).run(out, async_op)


def reduce(
    x: Tensors,
    group: GroupLike = None,
    *,
    dst: int = 0,
    op: str = "sum",
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return the reduction of every rank's `x` on rank `dst`, and None elsewhere.

    Its gradient is refused, for ranks that hold None could not take part in it: `all_reduce` has one.

    Args:
        x: of one shape and dtype on all ranks.
        group: a mesh axis, a process group, or None for the world.
        dst: the group's rank that gets the result.
        op: as for `all_reduce`.
        out: holds the result on `dst`; elsewhere it is left as it is.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.reduce(torch.tensor([1.0, 2.0]), dst=0)
    tensor([1., 2.])
    """
    if not async_op and (done := quick.reduce(x, group, dst, op, out)) is not NOT_PLAIN:
        return done
    verb = Verb("reduce", x, group)
    return verb.whole(root=verb.check_rank("dst", dst), op=op, gradient=False).run(out, async_op, here=verb.rank == dst)


def gather(
    x: Tensors,
    group: GroupLike = None,
    *,
    dst: int = 0,
    dim: int = 0,
    sizes: Sequence[int] | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return every rank's `x`, concatenated along `dim`, on rank `dst`, and None elsewhere.

    Its gradient is refused, for ranks that hold None could not take part in it: `all_gather` has one.

    Args:
        x: of one shape on all ranks, unless `sizes` says otherwise.
        group: a mesh axis, a process group, or None for the world.
        dst: the group's rank that gets the result.
        dim: the dim along which to concatenate.
        sizes: the size of each rank's `x` along `dim`; every rank passes the same.
        out: holds the result on `dst`; elsewhere it is left as it is.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.gather(torch.tensor([1, 2]), dst=0)
    tensor([1, 2])
    """
    if dim == 0 and sizes is None and not async_op and (done := quick.gather(x, group, dst, out)) is not NOT_PLAIN:
        return done
    verb = Verb("gather", x, group)
    root = verb.check_rank("dst", dst)
    return verb.parts(dim, verb.joined(sizes), root=root, gradient=False).run(out, async_op, here=verb.rank == dst)


def scatter(
    x: Tensors | None = None,
    group: GroupLike = None,
    *,
    src: int = 0,
    dim: int = 0,
    sizes: Sequence[int] | None = None,
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Return this rank's part, along `dim`, of rank `src`'s `x`.

    Args:
        x: read on `src` only; elsewhere it may be None, for shape, dtype and container come from `src`. Under
            `torch.compile`, and while a graph is captured, shapes must be known beforehand: there, pass a tensor of
            `src`'s shape on every rank.
        group: a mesh axis, a process group, or None for the world.
        src: the group's rank to take it from.
        dim: the dim along which to split.
        sizes: the size of each rank's part along `dim`; every rank passes the same.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.scatter(torch.tensor([1, 2]), src=0)
    tensor([1, 2])
    """
    return scattered(x, group, src, dim, sizes, out, async_op)


def permute(
    x: Tensors,
    group: GroupLike = None,
    *,
    pairs: Sequence[tuple[int, int]],
    out: Tensors | None = None,
    async_op: bool = False,
) -> Any:
    """Send `x` along each (source, destination) of `pairs`; return what came here, or zeros if nothing did.

    This is the point-to-point that has a gradient: each goes back the way that its tensor came.

    Args:
        x: of one shape and dtype on all ranks.
        group: a mesh axis, a process group, or None for the world.
        pairs: ranks of the group, the same list on every rank; none is twice a source or twice a destination.
        out: holds the result.
        async_op: return a `Work`.

    >>> import torch, devices
    >>> with devices.init():
    ...     devices.permute(torch.tensor([1, 2]), pairs=[(0, 0)])
    tensor([1, 2])
    """
    try:
        pairs = [(source, to) for source, to in pairs]
    except (TypeError, ValueError) as error:
        raise Verb("permute", x, group).error(
            f"pairs= holds pairs of ranks, (source, destination), as [(0, 1), (1, 0)] does; got {pairs!r}"
        ) from error
    if not async_op and (done := quick.permute(x, group, pairs, out)) is not NOT_PLAIN:
        return done
    verb = Verb("permute", x, group)
    ways = tuple((verb.check_rank("a source", source), verb.check_rank("a destination", to)) for source, to in pairs)
    for ends, what in ((0, "source"), (1, "destination")):
        if len({way[ends] for way in ways}) < len(ways):
            raise verb.error(f"a rank is twice a {what} in pairs={list(ways)}")
    return verb.whole(pairs=ways).run(out, async_op)


def send(x: Tensors, group: GroupLike = None, *, dst: int, tag: int = 0, async_op: bool = False) -> Any:
    """Send `x` to rank `dst`, which receives it by `recv`; return None.

    Args:
        x: not requiring grad: `permute` is the point-to-point that has a gradient.
        group: a mesh axis, a process group, or None for the world.
        dst: the group's rank to send to; not one's own.
        tag: messages between two ranks with one tag arrive in the order sent; 0 to 2**30 - 1.
        async_op: return a `Work`.
    """
    if not async_op and (done := quick.send(x, group, dst, tag)) is not NOT_PLAIN:
        return done
    return Verb("send", x, group).send(dst, tag, async_op)


def recv(
    x: Tensors, group: GroupLike = None, *, src: int, tag: int = 0, out: Tensors | None = None, async_op: bool = False
) -> Any:
    """Return what rank `src` sent by `send`.

    Args:
        x: gives the shape and dtype of what is coming; left unchanged.
        group: a mesh axis, a process group, or None for the world.
        src: the group's rank to receive from; not one's own.
        tag: the sender's.
        out: holds the result.
        async_op: return a `Work`.
    """
    if not async_op and (done := quick.recv(x, group, src, tag, out)) is not NOT_PLAIN:
        return done
    return Verb("recv", x, group).recv(src, tag, out, async_op)


def barrier(group: GroupLike = None, *, async_op: bool = False) -> Any:
    """Return once every rank of the group has called it.

    >>> import devices
    >>> with devices.init():
    ...     devices.barrier()
    """
    if _is_compiling():
        if async_op:
            raise UnsupportedError("barrier: async_op= is not compiled; leave it away")
        name, _, _ = compiled_group(group)
        return compiled_barrier(torch.empty(0), name)
    pending = own_verbs(group).barrier(async_op=async_op)
    return Work(pending, lambda: None) if async_op else None
