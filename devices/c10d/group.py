"""The process group that torch knows as "devices": torch's methods, by old names and new, over our verbs.

A Python subclass of torch's `ProcessGroup` is what torch 2.13 accepts from outside. Its methods get torch's
argument forms (lists of tensors, lists of lists, options objects) and hand flat tensors to `Verbs`.
"""

# mypy: disable-error-code="override, assignment"
# torch's own declarations leave out what its C++ accepts, and spell arguments that it passes by position.

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, final

import torch
import torch.distributed as dist

from devices import _observing, _torch
from devices.algorithms.arithmetic import check_reduction
from devices.algorithms.observed import AnyVerbs
from devices.c10d.arguments import (
    SUM,
    SUMMED,
    OneOrMore,
    Tensor,
    alike,
    asks_async,
    flattened,
    flattened_in_place,
    listed,
    only,
    op_and_factor,
    plain,
    root_rank,
    row_counts,
    unpack,
    unpack_columns,
)
from devices.c10d.lanes import Lanes
from devices.c10d.monitored_barrier import monitored_barrier
from devices.c10d.work import DONE, DoneWork, PendingWork, Started
from devices.errors import UnsupportedError


@final
class DevicesGroup(dist.ProcessGroup):
    """A process group whose verbs are those of the backend that fits each tensor's device.

    Args:
        lanes: the group's.
    """

    # What torch asks of the native backend inside a group of its own; here the group answers for itself.
    supports_splitting = supports_coalescing = supports_time_estimate = False

    def __init__(self, lanes: Lanes) -> None:
        group = lanes.group
        # The constructor with a store, the only one declared, makes no object that Python may subclass.
        super().__init__(group.rank, group.size)  # type: ignore[call-arg]
        self.lanes = lanes
        self.group = group
        self._name = group.name
        self._description = "undefined"
        self._is_alone = group.size == 1
        self._coalesced: list[dist.Work] | None = None
        self._monitored = itertools.count()
        self._verbs = lanes.opened

    def verbs_on(self, device_type: str, *, is_ours: bool = False) -> AnyVerbs:
        """Return the verbs over tensors on devices of that type, for torch's calls or for ours."""
        verbs = self._verbs.get(device_type)
        if verbs is None:
            raise self.lanes.stranger(device_type)
        return _observing.observed(verbs, is_ours=is_ours) if _observing.is_on else verbs

    # What torch asks a group about itself, from Python by some of these names and from C++ by others.

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "devices"

    def name(self) -> str:
        return "devices"

    def getGroupName(self) -> str:  # noqa: N802 - torch's name
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802 - torch's name
        self._name = name

    def getGroupDesc(self) -> str:  # noqa: N802 - torch's name
        return self._description

    def setGroupDesc(self, description: str) -> None:  # noqa: N802 - torch's name
        self._description = description

    _set_group_name = setGroupName
    _set_group_desc = setGroupDesc
    group_name = property(getGroupName)
    group_desc = property(getGroupDesc)

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(kind) for kind in self.lanes.kinds]

    def _get_backend(self, device: torch.device) -> DevicesGroup:
        if device.type not in self.lanes.kinds:
            # A RuntimeError is how torch's own groups say so, and what torch catches.
            raise RuntimeError(f"{self.group}: the group has no backend for devices of type {device.type!r}")
        return self

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        """Say no: tensors come from torch's own allocator."""
        return False

    def get_group_store(self) -> dist.Store:
        return self.group.store.torch

    def _set_sequence_number_for_group(self) -> None:
        """Do nothing: our verbs number themselves."""

    def _get_sequence_number_for_group(self) -> int:
        return 0

    def abort(self) -> None:
        self.lanes.abort()

    def shutdown(self) -> None:
        """Close the group; whatever is called after that is an error."""
        self._is_alone = False
        self.lanes.close()

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> dist.Work:
        """Return one work for all that was started since `_start_coalescing`."""
        works, self._coalesced = self._coalesced or [], None
        return PendingWork([(work, None) for work in works], [])

    # The verbs, as torch calls them.

    def allreduce(self, tensors: OneOrMore, opts: Any = None, *, op: Any = None) -> dist.Work:
        if self._is_alone and type(tensors) is list and opts is not None and not _observing.is_on:
            # The cheapest call there is decides what torch's verbs cost over this group.
            tensor = tensors[0]
            if tensor.is_cpu and tensor.dtype in SUMMED and opts.reduceOp == SUM and not opts.asyncOp:
                return DONE
        tensors = listed(tensors)
        name, factor = op_and_factor(opts if op is None else op)
        is_async = asks_async(opts)
        started = [self._all_reduce(plain(tensor), name, factor, is_async) for tensor in tensors]
        return self._work(started, tensors, is_async)

    def _all_reduce(self, tensor: Tensor, op: str, factor: Any, async_op: bool) -> Started:
        verbs = self.verbs_on(tensor.device.type)
        if tensor.layout is not torch.strided:
            return self._all_reduce_sparse(verbs, tensor, op)
        check_reduction(op, tensor.dtype)
        if factor is not None:
            tensor.mul_(factor)
        flat, finish = flattened_in_place(tensor)
        return verbs.all_reduce(flat, op, async_op=async_op), finish

    def _all_reduce_sparse(self, verbs: AnyVerbs, tensor: Tensor, op: str) -> Started:
        """Add sparse tensors up: every rank gathers the others' indices and values and lets torch coalesce them."""
        if op != "sum" or tensor.layout is not torch.sparse_coo:
            raise UnsupportedError(
                f"{self.group}: of tensors that are not dense, the sum of torch.sparse_coo ones is there; "
                f"{op!r} of {tensor.layout} was asked for"
            )
        mine = tensor.coalesce()
        counts = torch.zeros(self.group.size, dtype=torch.int64, device=tensor.device)
        counts[self.group.rank] = mine.values().shape[0]
        verbs.all_reduce(counts, "sum")
        parts = []
        for part in (mine.indices().t(), mine.values()):
            row = part.shape[1:]
            sizes = [count * row.numel() for count in counts.tolist()]
            gathered = part.new_empty(sum(sizes))
            verbs.all_gather(gathered, part.reshape(-1), sizes)
            parts.append(gathered.view(-1, *row))
        total = torch.sparse_coo_tensor(parts[0].t(), parts[1], tensor.shape, check_invariants=False).coalesce()
        return DONE, lambda: tensor.copy_(total)

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        (op, factor), is_async = op_and_factor(opts), asks_async(opts)
        started = []
        for same in alike(tensors, tensors):
            flat = torch.cat([flattened(tensor) for tensor in same])
            pending, _ = self._all_reduce(flat, op, factor, is_async)
            started.append((pending, partial(unpack, flat, same)))
        return self._work(started, tensors, is_async)

    def broadcast(self, tensors: OneOrMore, opts: Any = None, *, root: int | None = None) -> dist.Work:
        tensor, is_async = only(listed(tensors)), asks_async(opts)
        flat, finish = flattened_in_place(plain(tensor))
        src = root_rank(opts) if root is None else root
        pending = self.verbs_on(tensor.device.type).broadcast(flat, src, async_op=is_async)
        return self._work([(pending, finish)], [tensor], is_async)

    def reduce(self, tensors: OneOrMore, opts: Any = None) -> dist.Work:
        (op, factor), is_async = op_and_factor(opts), asks_async(opts)
        tensor = plain(only(listed(tensors)))
        check_reduction(op, tensor.dtype)
        if factor is not None:
            tensor.mul_(factor)
        flat, finish = flattened_in_place(tensor)
        pending = self.verbs_on(tensor.device.type).reduce(flat, root_rank(opts), op, async_op=is_async)
        return self._work([(pending, finish)], [tensor], is_async)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        is_async = asks_async(opts)
        flat, finish = flattened_in_place(plain(output))
        pending = self.verbs_on(input.device.type).all_gather(flat, flattened(input), async_op=is_async)
        return self._work([(pending, finish)], [output], is_async)

    def allgather(self, outputs: Sequence[Any], inputs: OneOrMore, opts: Any = None) -> dist.Work:
        is_async = asks_async(opts)
        if isinstance(inputs, Tensor):
            outputs, inputs = [outputs], [inputs]
        started = []
        for targets, input in zip(outputs, inputs, strict=True):
            counts = [target.numel() for target in targets]
            flat = input.new_empty(sum(counts))
            pending = self.verbs_on(input.device.type).all_gather(flat, flattened(input), counts, async_op=is_async)
            started.append((pending, partial(unpack, flat, targets)))
        return self._work(started, outputs, is_async)

    def allgather_coalesced(
        self, output_lists: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        # Unlike allgather's, each inner list holds one rank's tensors.
        return self.allgather([list(targets) for targets in zip(*output_lists, strict=True)], inputs, opts)

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        is_async, started = asks_async(opts), []
        for places in alike(range(len(inputs)), inputs):
            mine = torch.cat([flattened(inputs[place]) for place in places])
            everyone = mine.new_empty(self.group.size * mine.numel())
            pending = self.verbs_on(mine.device.type).all_gather(everyone, mine, async_op=is_async)
            rows = everyone.view(self.group.size, -1)
            started.append((pending, partial(unpack_columns, rows, [outputs[place] for place in places])))
        return self._work(started, outputs, is_async)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        is_async = asks_async(opts)
        return self._work([self._reduce_scatter(output, flattened(input), None, opts, is_async)], [output], is_async)

    def reduce_scatter(
        self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None
    ) -> dist.Work:
        is_async, started = asks_async(opts), []
        for output, parts in zip(outputs, inputs, strict=True):
            flat = torch.cat([flattened(part) for part in parts])
            started.append(self._reduce_scatter(output, flat, [part.numel() for part in parts], opts, is_async))
        return self._work(started, outputs, is_async)

    def _reduce_scatter(
        self, output: Tensor, flat: Tensor, counts: Sequence[int] | None, opts: Any, is_async: bool
    ) -> Started:
        op, factor = op_and_factor(opts)
        check_reduction(op, flat.dtype)
        if factor is not None:
            flat = flat * factor
        target, finish = flattened_in_place(plain(output))
        verbs = self.verbs_on(flat.device.type)
        return verbs.reduce_scatter(target, flat, op, counts, async_op=is_async), finish

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        is_async, started = asks_async(opts), []
        for places in alike(range(len(inputs)), inputs):
            rows = torch.cat([plain(inputs[place]).reshape(self.group.size, -1) for place in places], dim=1)
            mine = rows.new_empty(rows.shape[1])
            pending, _ = self._reduce_scatter(mine, rows.reshape(-1), None, opts, is_async)
            started.append((pending, partial(unpack, mine, [outputs[place] for place in places])))
        return self._work(started, outputs, is_async)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_splits: Sequence[int] | None = None,
        input_splits: Sequence[int] | None = None,
        opts: Any = None,
    ) -> dist.Work:
        is_async = asks_async(opts)
        flat, finish = flattened_in_place(plain(output))
        received = row_counts(self.group, "output", output, output_splits)
        sent = row_counts(self.group, "input", input, input_splits)
        counts = (received, sent) if output_splits or input_splits else ()
        verbs = self.verbs_on(input.device.type)
        pending = verbs.all_to_all(flat, flattened(input), *counts, async_op=is_async)
        return self._work([(pending, finish)], [output], is_async)

    def alltoall(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> dist.Work:
        is_async = asks_async(opts)
        flat = torch.cat([flattened(input) for input in inputs])
        output_counts = [output.numel() for output in outputs]
        target = flat.new_empty(sum(output_counts))
        pending = self.verbs_on(flat.device.type).all_to_all(
            target, flat, output_counts, [input.numel() for input in inputs], async_op=is_async
        )
        return self._work([(pending, partial(unpack, target, outputs))], outputs, is_async)

    def gather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None) -> dist.Work:
        is_async, root = asks_async(opts), root_rank(opts)
        input, targets = only(inputs), outputs[0] if self.group.rank == root else []
        flat = input.new_empty(sum(target.numel() for target in targets)) if targets else None
        pending = self.verbs_on(input.device.type).gather(flat, flattened(input), root, async_op=is_async)
        return self._work([(pending, None if flat is None else partial(unpack, flat, targets))], outputs, is_async)

    def scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None) -> dist.Work:
        is_async, root, output = asks_async(opts), root_rank(opts), only(outputs)
        flat = torch.cat([flattened(part) for part in inputs[0]]) if self.group.rank == root else None
        target, finish = flattened_in_place(plain(output))
        pending = self.verbs_on(output.device.type).scatter(target, flat, root, async_op=is_async)
        return self._work([(pending, finish)], outputs, is_async)

    def barrier(self, opts: Any = None) -> dist.Work:
        is_async = asks_async(opts)
        pending = self.verbs_on(self.group.device.type).barrier(async_op=is_async)
        return self._work([(pending, None)], [], is_async)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        monitored_barrier(self.group, next(self._monitored), timeout, wait_all_ranks)

    def send(self, tensors: Sequence[Tensor], dst: int, tag: int = 0) -> dist.Work:
        tensor = only(tensors)
        pending = self.verbs_on(tensor.device.type).send(flattened(tensor), dst, tag, async_op=True)
        return self._work([(pending, None)], tensors, True)

    def recv(self, tensors: Sequence[Tensor], src: int, tag: int = 0) -> dist.Work:
        tensor = only(tensors)
        flat, finish = flattened_in_place(plain(tensor))
        pending = self.verbs_on(tensor.device.type).recv(flat, src, tag, async_op=True)
        return self._work([(pending, finish)], tensors, True, lambda: src)

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> dist.Work:
        tensor = only(tensors)
        flat, finish = flattened_in_place(plain(tensor))
        pending = self.verbs_on(tensor.device.type).recv_any(flat, tag)
        return self._work([(pending, finish)], tensors, True, pending.source)

    def _work(
        self, started: Sequence[Started], tensors: Any, is_async: bool, source: Callable[[], int] | None = None
    ) -> dist.Work:
        """Return torch's work for what was started, and finish it first if it was not to be asynchronous."""
        if is_async:
            work = PendingWork(started, tensors, source)
            if self._coalesced is not None:
                self._coalesced.append(work)
            return work
        for _, finish in started:
            if finish is not None:
                finish()
        return DONE

    # The same under the names that torch used before 2.13, and under those that 2.14 asks for.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single
    start_coalescing = _start_coalescing
    end_coalescing = _end_coalescing


for _kind in (DevicesGroup, DoneWork, PendingWork):
    _torch.hide_from_compiler(_kind)
