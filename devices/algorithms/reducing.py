"""The verbs that reduce: all_reduce, reduce_scatter and reduce."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from devices._backend import Pending
from devices.algorithms.arithmetic import check_reduction
from devices.algorithms.as_bytes import copy_alone
from devices.algorithms.opened import Opened
from devices.algorithms.started import DONE, Started, fail
from devices.recorder.record import end

Tensor = torch.Tensor


class Reducing(Opened):
    """The part of `Verbs` that reduces."""

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending:
        """Replace `tensor` by the reduction over all ranks, the same bits on every rank."""
        pair = op, tensor.dtype
        if pair in self._alone:
            return DONE
        if (
            pair in self._direct
            and ((worker := self._runner.worker) is None or not worker.is_busy)
            and tensor.numel()
            and not (async_op and self._blocks)
        ):
            if tensor.requires_grad:
                tensor = tensor.detach()
            record = self.flight.begin("all_reduce", tensor.dtype, tensor.numel(), op)
            try:
                pending = self._start_all_reduce(tensor, op)
                if async_op:
                    return Started(self.flight, record, pending)
                pending.wait()
            except Exception as error:
                fail(self.flight, record, error)
            end(record)
            return DONE
        self._require.open("all_reduce", tensor.dtype)
        check_reduction(op, tensor.dtype)
        record = self._begin("all_reduce", tensor, op)
        if not tensor.numel():
            return self._runner.nothing(record, async_op)
        plan = self.plans.find("all_reduce", tensor.nbytes)
        carrier = self._reductions.carrier("all_reduce", op, tensor.dtype) if plan is None else None
        if carrier is not None:
            if not carrier.hops and not self.plans.of("all_reduce"):
                self._direct.add(pair)
            return self._runner.native(record, partial(self._reductions.start, carrier, tensor), async_op)
        return self._runner.compose(record, partial(self._reductions.compose, tensor, op, None, plan), async_op)

    def all_reduced(self, tensor: Tensor, op: str) -> Tensor | None:
        """Return the reduction of `tensor`, which does not require grad, as a new one; None if it is done in place."""
        if (
            tensor.nbytes > self._anew
            or tensor.ndim != 1
            or (op, tensor.dtype) not in self._direct
            or ((worker := self._runner.worker) is not None and worker.is_busy)
        ):
            return None
        record = self.flight.begin("all_reduce", tensor.dtype, tensor.numel(), op)
        try:
            reduced = self._on.communicator.all_reduced(tensor, op)
        except Exception as error:
            fail(self.flight, record, error)
        end(record)
        return reduced

    def reduce_scatter(
        self,
        output: Tensor,
        input: Tensor,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        """Fill `output` with this rank's part of the reduced `input`."""
        verb = "reduce_scatter"
        self._require.open(verb, input.dtype)
        check_reduction(op, input.dtype)
        sizes, is_even = self._require.sizes(verb, counts, output.numel())
        self._require.size(verb, "input", input, sum(sizes))
        self._require.size(verb, "output", output, sizes[self._rank])
        self._require.same_dtype(verb, output, input)
        if self._size == 1:
            return copy_alone(input, output)
        record, uneven = self._begin(verb, input, op), () if is_even else sizes
        if not input.numel():
            return self._runner.nothing(record, async_op, uneven)
        plan = self.plans.find(verb, input.nbytes)
        carrier = self._reductions.carrier(verb, op, input.dtype) if is_even and plan is None else None
        if carrier is not None:
            return self._runner.native(
                record, partial(self._reductions.start_scatter, carrier, output, input), async_op
            )
        run = partial(self._reductions.compose_scatter, output, input, op, sizes, plan)
        return self._runner.compose(record, run, async_op, uneven)

    def reduce(self, tensor: Tensor, dst: int, op: str = "sum", *, async_op: bool = False) -> Pending:
        """Replace `tensor` on rank `dst` by the reduction over all ranks; elsewhere it is left as it is."""
        verb = "reduce"
        self._require.open(verb, tensor.dtype)
        self._require.rank(verb, "dst", dst)
        check_reduction(op, tensor.dtype)
        if self._size == 1:
            return DONE
        record = self._begin(verb, tensor, op, dst)
        if not tensor.numel():
            return self._runner.nothing(record, async_op)
        plan = self.plans.find(verb, tensor.nbytes, dst)
        carrier = self._reductions.carrier(verb, op, tensor.dtype) if plan is None else None
        if carrier is not None:
            return self._runner.native(record, partial(self._reductions.start, carrier, tensor, dst), async_op)
        return self._runner.compose(record, partial(self._reductions.compose, tensor, op, dst, plan), async_op)
