"""One verb as a linear map between flat tensors: how it runs, how it is differentiated.

Every public verb packs its tensors into a flat one, applies one `Call` and unpacks; packing is torch's own
reshape, cat and split, so gradients and graphs pass through it by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch

from devices._backend import Pending
from devices.algorithms.observed import AnyVerbs
from devices.algorithms.started import DONE
from devices.errors import UnsupportedError

Tensor = torch.Tensor


@final
@dataclass(frozen=True, slots=True)
class Call:
    """A verb and what it needs beside its tensor.

    Args:
        verb: its name.
        op: the reduce op, for verbs that reduce.
        root: the source or the destination, for verbs that have one.
        counts: elements of each rank's part; for all_to_all, elements that come from each rank.
        sent: for all_to_all, elements that go to each rank.
        is_even: for all_to_all, whether all parts are equal, on every rank.
        sizes: for all_to_all, what every rank was told that each sends to each, row by row, to be compared.
        pairs: for permute, (source, destination) of each message.
        gradient: False where the verb's result lives on one rank alone, whose backward the others could not join.
    """

    verb: str
    op: str = "sum"
    root: int = 0
    counts: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    is_even: bool = False
    sizes: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    gradient: bool = True

    def numel(self, given: int, rank: int) -> int:
        """Return the number of elements of the result on `rank`, for `given` elements there."""
        if self.verb in ("all_gather", "gather", "all_to_all"):
            return sum(self.counts)
        if self.verb in ("reduce_scatter", "scatter"):
            return self.counts[rank]
        return given

    def start(self, verbs: AnyVerbs, given: Tensor, into: Tensor | None, *, async_op: bool) -> tuple[Pending, Tensor]:
        """Start the verb on the flat `given`, and return what is pending and the flat result to be.

        Args:
            verbs: the group's.
            given: left unchanged. Where a rank gets nothing, its result is zeros.
            into: a flat tensor to hold the result, or None for a new one.
            async_op: whether to return before it is done.
        """
        verb, rank, root = self.verb, verbs.group.rank, self.root
        if verb != "scatter" or rank == root:
            given = in_memory(given)
        if verb == "all_reduce" and into is None and not async_op:
            reduced = verbs.all_reduced(given, self.op)
            if reduced is not None:
                return DONE, reduced
        if verb in ("all_reduce", "broadcast"):
            result = given.clone() if into is None else into.copy_(given)
            flat = result if result.ndim == 1 else result.view(-1)
            if verb == "all_reduce":
                return verbs.all_reduce(flat, self.op, async_op=async_op), result
            return verbs.broadcast(flat, root, async_op=async_op), result
        if verb == "reduce":
            if rank != root and not async_op:
                # Nothing is written there.
                return verbs.reduce(given, root, self.op), given.new_zeros(1).expand(given.shape)
            # Verbs reduces in place, and the program may change its tensor before it has waited.
            result = given.clone() if into is None else into.copy_(given)
            pending = verbs.reduce(result, root, self.op, async_op=async_op)
            return pending, result if rank == root else given.new_zeros(1).expand(given.shape)
        if verb == "gather" and rank != root:
            nothing = given.new_zeros(1).expand(sum(self.counts))
            return verbs.gather(None, given, root, self.counts, async_op=async_op), nothing
        result = given.new_empty(self.numel(given.numel(), rank)) if into is None else into
        if verb == "all_gather":
            return verbs.all_gather(result, given, self.counts, async_op=async_op), result
        if verb == "reduce_scatter":
            return verbs.reduce_scatter(result, given, self.op, self.counts, async_op=async_op), result
        if verb == "all_to_all":
            counts = () if self.is_even else (self.counts, self.sent)
            return verbs.all_to_all(result, given, *counts, async_op=async_op, sizes=self.sizes), result
        if verb == "gather":
            return verbs.gather(result, given, root, self.counts, async_op=async_op), result
        if verb == "scatter":
            whole = given if rank == root else None
            return verbs.scatter(result, whole, root, self.counts, async_op=async_op), result
        if any(destination == rank for _, destination in self.pairs):
            return verbs.permute(result, given, self.pairs, async_op=async_op), result
        return verbs.permute(None, given, self.pairs, async_op=async_op), result.zero_()

    def adjoint(self) -> tuple[Call, float]:
        """Return the verb that carries gradients back, and what to divide its result by.

        The gradient is that of the sum over ranks of each rank's loss.
        """
        moves_or_adds = self.op in ("sum", "avg")
        if self.verb == "all_reduce" and moves_or_adds:
            return self, 1
        if self.verb == "all_gather":
            return replace(self, verb="reduce_scatter", op="sum"), 1
        if self.verb == "reduce_scatter" and moves_or_adds:
            return replace(self, verb="all_gather"), len(self.counts) if self.op == "avg" else 1
        if self.verb == "all_to_all":
            size = len(self.counts)
            turned = tuple(part for source in range(size) for part in self.sizes[source::size])
            return replace(self, counts=self.sent, sent=self.counts, sizes=turned), 1
        if self.verb == "permute":
            return replace(self, pairs=tuple((destination, source) for source, destination in self.pairs)), 1
        if self.verb == "broadcast":
            return replace(self, verb="reduce"), 1
        if self.verb == "scatter":
            # Ranks that gave nothing hold no gradient, so they could not take part in a second one.
            return replace(self, verb="gather", gradient=False), 1
        if self.verb == "reduce" and self.gradient:
            return replace(self, verb="broadcast"), 1
        if self.verb in ("reduce", "gather"):
            raise UnsupportedError(
                f"{self.verb} has no gradient, nor has that of scatter: the result is on rank {self.root} alone, and "
                f"the other ranks could not take part in its backward; use all_{self.verb} or broadcast, whose "
                "gradients are defined on every rank"
            )
        raise UnsupportedError(
            f"{self.verb} with op {self.op!r} has no gradient; those of 'sum' and 'avg' are defined. "
            "detach() the tensor if none is needed"
        )


def in_memory(tensor: Tensor) -> Tensor:
    """Return `tensor` with its elements in memory one after another as they are, no conjugation left to be done."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.numel() < 2 and tensor.ndim and tensor.stride(-1) != 1:
        # Contiguous to torch, but it does not view such a tensor as bytes.
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


@final
class _Differentiable(torch.autograd.Function):
    """A call as a node of torch's graph. Its backward is a call too, so gradients of gradients are right."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, run: tuple[Call, AnyVerbs, list[Pending], bool]) -> Tensor:
        # One tuple, for autograd takes its time over each argument.
        call, verbs, pendings, async_op = run
        ctx.call, ctx.verbs = call, verbs
        pending, result = call.start(verbs, given, None, async_op=async_op)
        pendings.append(pending)
        # What is still to be written must not be what torch makes require grad: it would differentiate the writing.
        return result.detach() if async_op else result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        call, divisor = ctx.call.adjoint()
        back = differentiable(gradients[0], call, ctx.verbs, [])
        return (back / divisor if divisor != 1 else back), None


def differentiable(
    given: Tensor, call: Call, verbs: AnyVerbs, pendings: list[Pending], *, async_op: bool = False
) -> Tensor:
    """Start `call` as a node of torch's graph, add what is pending to `pendings`, and return the result to be."""
    result: Tensor = _Differentiable.apply(given, (call, verbs, pendings, async_op))  # type: ignore[no-untyped-call]
    return result
