"""`Verbs`: the complete set of verbs over any conforming communicator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import final

import torch

from devices._backend import Capabilities, Communicator, Group, Message, Pending, PendingFrom
from devices.algorithms import forked
from devices.algorithms.arithmetic import MEANINGFUL, check_reduction
from devices.algorithms.as_bytes import as_bytes, copy_alone, scaled
from devices.algorithms.carried import Carried, Survivors
from devices.algorithms.lines import caller
from devices.algorithms.lowerings import Lowering, compose, own_verbs
from devices.algorithms.messages import Messages
from devices.algorithms.planned import Planned, Plans
from devices.algorithms.reductions import Reductions
from devices.algorithms.requirements import Requirements
from devices.algorithms.runner import Runner
from devices.algorithms.started import DONE, Started, fail, failure
from devices.algorithms.transport import Transport
from devices.algorithms.ways import ways
from devices.errors import DevicesError, PluginError
from devices.recorder.files import join
from devices.recorder.record import VERB, Record, end

Tensor = torch.Tensor

_NONE: Mapping[torch.dtype, str] = MappingProxyType({})


@final
class Verbs(Carried):
    """A group's verbs, seen from one rank: native where the communicator has them and they fit, else composed.

    All tensors are flat, contiguous and on the group's device. Each verb returns a `Pending`, already done unless
    `async_op`. `counts` are numbers of elements by rank, the same on all ranks, zeros allowed; without them all
    parts are equal. What is not changed in place is left unchanged; a part of the input and its counterpart in
    the output may be the same memory. All ranks call a group's collective verbs in the same order; send, recv and
    exchange are apart from that order, may be called beside it, and need only be matched by their peer.

    A composed verb with `async_op` runs on a thread of the group, and while it does, the verbs after it queue
    there, so `exchange` may be called from two threads at once.

    Args:
        communicator: the group's transport; None will do for a group of one.
        group: the members.
        capabilities: what the device and the communicator can do.
        lacks: of dtypes that some ranks' devices have and others' have not, who has not, in words.
        survivors: finds the ranks that are left after an error; None where the communicator does, if anything.

    Raises:
        PluginError: the communicator lacks what every verb could be composed from.
    """

    def __init__(
        self,
        communicator: Communicator | None,
        group: Group,
        capabilities: Capabilities,
        lacks: Mapping[torch.dtype, str] = _NONE,
        survivors: Survivors | None = None,
    ) -> None:
        super().__init__(communicator, group, capabilities, survivors)
        self._size, self._rank = group.size, group.rank
        self._require = Requirements(group, capabilities.dtypes, lacks)
        # The pairs of op and dtype that all_reduce needs to do nothing for, and those that it hands on as they are,
        # which it learns by the first call: a program that makes thousands of groups uses few.
        self._alone: frozenset[tuple[str, torch.dtype]] = frozenset()
        self._direct: set[tuple[str, torch.dtype]] = set()
        self._anew = -1  # up to so many bytes the communicator makes the result of an all_reduce anew
        self._gathered: set[torch.dtype] = set()  # the same of all_gather
        self._own: frozenset[str] = frozenset()  # what the communicator has of its own
        self.plans = Plans() if communicator is None else Plans(communicator.planned)
        if self._size == 1:
            self._alone = MEANINGFUL
            self._messages = Messages(None, group, self._require, None)
            return
        if communicator is None:
            raise PluginError(f"{group}: a group of more than one rank needs a communicator, got None")
        kind, index = group.device.type, group.device.index
        device = torch.device(kind) if kind == "cpu" else torch.device(kind, index)
        self.flight = join(group, caller)
        self._messages = Messages(communicator, group, self._require, self.flight)
        self._lowered = compose(communicator, group)
        self._own = own_verbs(communicator)
        self._runner = Runner(self.flight, device, communicator)
        self._on = Transport(
            communicator, self._rank, self._size, device, communicator.reductions or capabilities.reductions
        )
        self._reductions = Reductions(self._on, self._lowered, self._own)
        self._start_all_reduce = communicator.all_reduce
        forked.watch(self)
        self._blocks, self._anew = communicator.blocking, communicator.anew

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

    def send(self, tensor: Tensor, dst: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        """Send `tensor` to rank `dst`, which receives it with the same tag."""
        return self._messages.exchange("send", (Message(tensor, dst, tag),), (), async_op)

    def recv(self, tensor: Tensor, src: int, tag: int = 0, *, async_op: bool = False) -> Pending:
        """Fill `tensor` with what rank `src` sends with the same tag."""
        return self._messages.exchange("recv", (), (Message(tensor, src, tag),), async_op)

    def recv_any(self, tensor: Tensor, tag: int = 0) -> PendingFrom:
        """Start to fill `tensor` with what the first rank to send something with that tag sends."""
        return self._messages.receive_any(tensor, tag)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], *, async_op: bool = False) -> Pending:
        """Do all sends and receives together, of tensors of any dtype; neither waits for the other."""
        return self._messages.exchange("exchange", sends, recvs, async_op)

    @property
    def ways(self) -> dict[str, str]:
        """How each verb goes, in words: as the communicator says, or composed from which of its own."""
        return {} if self._communicator is None else ways(self._communicator, self._lowered, self.plans)

    @property
    def has_exchange(self) -> bool:
        """Whether the communicator has messages from rank to rank, of which schedules are made."""
        return "exchange" in self._own

    def go_by(self, planned: Planned | None) -> None:
        """Let a verb go by a schedule, or all verbs by none that was given; at the same call on all ranks."""
        self.plans.give(planned)
        self._direct.clear()
        self._gathered.clear()

    def abort(self) -> None:
        """Make every verb that is waiting here fail soon, and what is queued with it; callable from any thread."""
        if self._require.closed:
            return
        if self._size > 1:
            self._runner.abort()
        if self._communicator is not None:
            self._communicator.abort()

    def close(self) -> None:
        """Finish what is queued and give everything back. After that every verb raises; callable more than once."""
        if self._require.closed:
            return
        self._end("the group is closed")
        # Who has closed the group does not recover, and is not to be waited for.
        self._survivors = None
        if self._size > 1:
            self._runner.close()
        if self._communicator is not None:
            try:
                self._communicator.close()
            except DevicesError:
                raise
            except Exception as error:
                raise failure(self.group, "close", error) from error

    def leave(self) -> object:
        """Be closed in this process, which was forked; return what the rank that forked it goes on with."""
        self._end(forked.LEFT)
        return self._communicator

    # How verbs run.

    def _end(self, why: str) -> None:
        self._require.closed = why
        self._alone, self._own, self._direct, self._gathered = frozenset(), frozenset(), set(), set()

    def _begin(self, verb: str, tensor: Tensor, op: str = "", root: int = -1) -> Record:
        return self.flight.begin(verb, tensor.dtype, tensor.numel(), op, root)

    def _move(self, record: Record, args: tuple[object, ...], async_op: bool, sizes: Sequence[int] = (),
              plan: Lowering | None = None) -> Pending:  # fmt: skip
        """Compose a verb that only moves data, by `plan` if there is one."""
        lowering = plan or self._lowered[record[VERB]]
        return self._runner.compose(record, partial(lowering.run, self._on, *args), async_op, sizes)
