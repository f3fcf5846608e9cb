"""One verb as a linear map between flat tensors: how it runs, how it is differentiated.

Every public verb packs its tensors into a flat one, applies one `Call` and unpacks; packing is torch's own
reshape, cat and split, so gradients and graphs pass through it by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch

from devices._backend import Pending
from devices.algorithms.verbs import Verbs
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
        pairs: for permute, (source, destination) of each message.
        gradient: False where the verb's result lives on one rank alone, whose backward the others could not join.
    """

    verb: str
    op: str = "sum"
    root: int = 0
    counts: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    gradient: bool = True

    def numel(self, given: int, rank: int) -> int:
        """Return the number of elements of the result on `rank`, for `given` elements there."""
        if self.verb in ("all_gather", "gather", "all_to_all"):
            return sum(self.counts)
        if self.verb in ("reduce_scatter", "scatter"):
            return self.counts[rank]
        return given

    def start(self, verbs: Verbs, given: Tensor, into: Tensor | None, *, async_op: bool) -> tuple[Pending, Tensor]:
        """Start the verb on the flat `given`, and return what is pending and the flat result to be.

        Args:
            verbs: the group's.
            given: left unchanged. Where a rank gets nothing, its result is zeros.
            into: a flat tensor to hold the result, or None for a new one.
            async_op: whether to return before it is done.
        """
        verb, rank = self.verb, verbs.group.rank
        at_root = rank == self.root
        if verb == "scatter":
            result = given.new_empty(self.counts[rank]) if into is None else into
            whole = given.contiguous() if at_root else None
            return verbs.scatter(result, whole, self.root, self.counts, async_op=async_op), result
        given = given.contiguous()
        if verb in ("all_reduce", "broadcast"):
            result = given.clone() if into is None else into.copy_(given)
            if verb == "all_reduce":
                return verbs.all_reduce(result, self.op, async_op=async_op), result
            return verbs.broadcast(result, self.root, async_op=async_op), result
        if verb == "reduce":
            if not at_root:
                return verbs.reduce(given, self.root, self.op, async_op=async_op), torch.zeros_like(given)
            result = given.clone() if into is None else into.copy_(given)
            return verbs.reduce(result, self.root, self.op, async_op=async_op), result
        if verb == "gather" and not at_root:
            unset = given.new_zeros(1).expand(sum(self.counts))
            return verbs.gather(None, given, self.root, self.counts, async_op=async_op), unset
        result = given.new_empty(self.numel(given.numel(), rank)) if into is None else into
        if verb == "all_gather":
            return verbs.all_gather(result, given, self.counts, async_op=async_op), result
        if verb == "reduce_scatter":
            return verbs.reduce_scatter(result, given, self.op, self.counts, async_op=async_op), result
        if verb == "all_to_all":
            return verbs.all_to_all(result, given, self.counts, self.sent, async_op=async_op), result
        if verb == "gather":
            return verbs.gather(result, given, self.root, self.counts, async_op=async_op), result
        receives = any(destination == rank for _, destination in self.pairs)
        target = result if receives else None
        if not receives:
            result.zero_()
        return verbs.permute(target, given, self.pairs, async_op=async_op), result

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
            return replace(self, counts=self.sent, sent=self.counts), 1
        if self.verb == "permute":
            return replace(self, pairs=tuple((destination, source) for source, destination in self.pairs)), 1
        if self.verb == "broadcast":
            return replace(self, verb="reduce"), 1
        if self.verb == "scatter":
            return replace(self, verb="gather"), 1
        if self.gradient and self.verb in ("reduce", "gather"):
            return replace(self, verb="broadcast" if self.verb == "reduce" else "scatter"), 1
        if self.verb in ("reduce", "gather"):
            raise UnsupportedError(
                f"{self.verb} has no gradient: its result is on rank {self.root} alone, and the other ranks could not "
                f"take part in its backward; use all_{self.verb}, whose gradient is defined on every rank"
            )
        raise UnsupportedError(
            f"{self.verb} with op {self.op!r} has no gradient; those of 'sum' and 'avg' are defined. "
            "detach() the tensor if none is needed"
        )


@final
class Differentiable(torch.autograd.Function):
    """A call as a node of torch's graph. Its backward is a call too, so gradients of gradients are right."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, call: Call, verbs: Verbs, pending: list[Pending], async_op: bool) -> Tensor:
        ctx.call, ctx.verbs = call, verbs
        started, result = call.start(verbs, given, None, async_op=async_op)
        pending.append(started)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call, divisor = ctx.call.adjoint()
        back = Differentiable.apply(gradients[0], call, ctx.verbs, [], False)
        return (back / divisor if divisor != 1 else back), None, None, None, None
