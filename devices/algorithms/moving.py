"""The collective verbs that move data as it is, from all_gather to permute, and barrier, which moves none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from devices._backend import Pending
from devices.algorithms.as_bytes import as_bytes, copy_alone, scaled
from devices.algorithms.lowerings import Lowering
from devices.algorithms.opened import Opened
from devices.algorithms.started import DONE
from devices.recorder.record import VERB, Record

Tensor = torch.Tensor


class Moving(Opened):
    """The part of `Verbs` that moves data between all ranks."""

    def all_gather(
        self, output: Tensor, input: Tensor, counts: Sequence[int] | None = None, *, async_op: bool = False
    ) -> Pending:
        """Fill `output` with every rank's `input`, in rank order."""
        verb = "all_gather"
        is_plain = counts is None and output.dtype == input.dtype and input.dtype in self._gathered
        if is_plain and 0 < output.numel() == self._size * input.numel():
            # The common case, at the least cost.
            record, args = self.flight.begin(verb, input.dtype, input.numel()), (as_bytes(output), as_bytes(input))
            return self._runner.hand_on(record, self._on.communicator.all_gather, args, async_op)
        self._require.open(verb, input.dtype)
        sizes, is_even = self._require.sizes(verb, counts, input.numel())
        self._require.size(verb, "input", input, sizes[self._rank])
        self._require.size(verb, "output", output, sum(sizes))
        self._require.same_dtype(verb, output, input)
        if self._size == 1:
            return copy_alone(input, output)
        record, args, uneven = self._begin(verb, input), (as_bytes(output), as_bytes(input)), () if is_even else sizes
        if not output.numel():
            return self._runner.nothing(record, async_op, uneven)
        plan = self.plans.find(verb, output.nbytes)
        if is_even and verb in self._own and plan is None:
            if not self.plans.of(verb):
                self._gathered.add(input.dtype)
            return self._runner.hand_on(record, self._on.communicator.all_gather, args, async_op)
        return self._move(record, (*args, scaled(sizes, output)), async_op, uneven, plan)

    def all_to_all(
        self,
        output: Tensor,
        input: Tensor,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        sizes: Sequence[int] = (),
    ) -> Pending:
        """Send `input_counts[i]` elements of `input` to rank i and fill `output` with `output_counts[i]` from it.

        Unlike other counts, these differ by rank: what a rank sends to another, that one receives. Who passes none
        says that all parts are equal on every rank, which the counts of one rank cannot tell. `sizes` are what every
        rank was told of all ranks' parts, row by row, to be compared; none where a rank knows of its own alone.
        """
        verb = "all_to_all"
        self._require.open(verb, input.dtype)
        received, _ = self._require.sizes(verb, output_counts, output.numel() // self._size)
        sent, _ = self._require.sizes(verb, input_counts, input.numel() // self._size)
        self._require.size(verb, "output", output, sum(received))
        self._require.size(verb, "input", input, sum(sent))
        self._require.same_dtype(verb, output, input)
        if received[self._rank] != sent[self._rank]:
            raise self._require.wrong(
                verb, f"sends itself {sent[self._rank]} elements and expects {received[self._rank]}"
            )
        if self._size == 1:
            return copy_alone(input, output)
        args = (as_bytes(output), as_bytes(input), scaled(received, output), scaled(sent, input))
        record, is_even = self._begin(verb, input), output_counts is None and input_counts is None
        takes_any = verb not in self._on.communicator.even
        if is_even and not input.numel() and not takes_any:
            return self._runner.nothing(record, async_op)
        plan = self.plans.find(verb, 0)
        if verb in self._own and (is_even or takes_any) and plan is None:
            return self._runner.hand_on(record, self._on.communicator.all_to_all, args, async_op, sizes)
        return self._move(record, args, async_op, sizes, plan)

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False, within: str = "") -> Pending:
        """Replace `tensor` by that of rank `src`; `within` says of what other verb that is a part, for errors."""
        verb = "broadcast"
        self._require.open(verb, tensor.dtype)
        self._require.rank(verb, "src", src)
        if self._size == 1:
            return DONE
        data, record = as_bytes(tensor), self._begin(within or verb, tensor, "", src)
        if not tensor.numel():
            return self._runner.nothing(record, async_op)
        plan = self.plans.find(verb, tensor.nbytes, src)
        if verb in self._own and plan is None:
            return self._runner.hand_on(record, self._on.communicator.broadcast, (data, src), async_op)
        return self._move(record, (data, src), async_op, (), plan or self._lowered[verb])

    def gather(
        self,
        output: Tensor | None,
        input: Tensor,
        dst: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        """Fill `output` on rank `dst` with every rank's `input`, in rank order; elsewhere `output` is None."""
        verb = "gather"
        self._require.open(verb, input.dtype)
        self._require.rank(verb, "dst", dst)
        sizes, is_even = self._require.sizes(verb, counts, input.numel())
        self._require.size(verb, "input", input, sizes[self._rank])
        self._require.at_root(verb, "output", output, dst, sum(sizes))
        if output is not None:
            self._require.same_dtype(verb, output, input)
            if self._size == 1:
                return copy_alone(input, output)
        args = None if output is None else as_bytes(output), as_bytes(input), dst
        record, uneven = self._begin(verb, input, "", dst), () if is_even else sizes
        if not sum(sizes):
            return self._runner.nothing(record, async_op, uneven)
        if is_even and verb in self._own:
            return self._runner.hand_on(record, self._on.communicator.gather, args, async_op)
        return self._move(record, (*args, scaled(sizes, input)), async_op, uneven)

    def scatter(
        self,
        output: Tensor,
        input: Tensor | None,
        src: int,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
    ) -> Pending:
        """Fill `output` with this rank's part of rank `src`'s `input`; elsewhere `input` is None."""
        verb = "scatter"
        self._require.open(verb, output.dtype)
        self._require.rank(verb, "src", src)
        sizes, is_even = self._require.sizes(verb, counts, output.numel())
        self._require.size(verb, "output", output, sizes[self._rank])
        self._require.at_root(verb, "input", input, src, sum(sizes))
        if input is not None:
            self._require.same_dtype(verb, output, input)
            if self._size == 1:
                return copy_alone(input, output)
        args = as_bytes(output), None if input is None else as_bytes(input), src
        record, uneven = self._begin(verb, output, "", src), () if is_even else sizes
        if not sum(sizes):
            return self._runner.nothing(record, async_op, uneven)
        if is_even and verb in self._own:
            return self._runner.hand_on(record, self._on.communicator.scatter, args, async_op)
        return self._move(record, (*args, scaled(sizes, output)), async_op, uneven)

    def permute(
        self, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]], *, async_op: bool = False
    ) -> Pending:
        """Fill `output` on the second rank of each pair with the `input` of the first.

        Args:
            output: None, or left as it is, where nothing is received.
            input: of one size on all ranks.
            pairs: the same on all ranks; each rank sends at most once and receives at most once.
            async_op: whether to return before it is done.
        """
        verb = "permute"
        self._require.open(verb, input.dtype)
        self._require.permutation(verb, pairs)
        if any(dst == self._rank for _, dst in pairs):
            if output is None:
                raise self._require.wrong(verb, "this rank receives something and needs an output, got None")
            self._require.size(verb, "output", output, input.numel())
            self._require.same_dtype(verb, output, input)
            if self._size == 1:
                return copy_alone(input, output)
        else:
            output = None
        if self._size == 1:
            return DONE
        record, flat = self._begin(verb, input), [rank for pair in pairs for rank in pair]
        if not input.numel():
            return self._runner.nothing(record, async_op, flat)
        args = None if output is None else as_bytes(output), as_bytes(input), pairs
        if verb in self._own:
            return self._runner.hand_on(record, self._on.communicator.permute, args, async_op, flat)
        return self._move(record, args, async_op, flat)

    def barrier(self, *, async_op: bool = False) -> Pending:
        """Be done once every rank has called it."""
        self._require.open("barrier")
        if self._size == 1:
            return DONE
        record = self.flight.begin("barrier", None, 0)
        if "barrier" in self._own:
            return self._runner.hand_on(record, self._on.communicator.barrier, (), async_op)
        return self._move(record, (), async_op)

    def _move(self, record: Record, args: tuple[object, ...], async_op: bool, sizes: Sequence[int] = (),
              plan: Lowering | None = None) -> Pending:  # fmt: skip
        """Compose a verb that only moves data, by `plan` if there is one."""
        lowering = plan or self._lowered[record[VERB]]
        return self._runner.compose(record, partial(lowering.run, self._on, *args), async_op, sizes)
