"""The process group that torch knows as "devices": torch's methods, by old names and new, over our verbs.

A Python subclass of torch's `ProcessGroup` is what torch 2.13 accepts from outside. Its methods get torch's
argument forms (lists of tensors, lists of lists, options objects) and hand flat tensors to `Verbs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist

from devices import _registry, _torch
from devices._backend import Group
from devices._c10d_work import DoneWork, PendingWork, Started
from devices._open import my_device, open_verbs
from devices._store import Store
from devices.algorithms.arithmetic import check_reduction
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError, UnsupportedError

Tensor = torch.Tensor
T = TypeVar("T")


@final
class DevicesGroup(dist.ProcessGroup):
    """A process group whose verbs are those of the backend that fits each tensor's device.

    Args:
        group: the members, seen from this rank; its device is that of the chosen backend.
        choice: the backend that was chosen, and why.
    """

    def __init__(self, group: Group, choice: _registry.Choice) -> None:
        super().__init__(group.rank, group.size)
        self.group = group
        self.choice = choice
        self._name = group.name
        self._description = "undefined"
        self._closed = False
        self._verbs: dict[str, Verbs] = {group.device.type: open_verbs(choice.backend, group)}

    def verbs_on(self, device_type: str) -> Verbs:
        """Return the verbs over tensors on devices of that type."""
        verbs = self._verbs.get(device_type)
        return verbs if verbs is not None else self._open_lane(device_type)

    @property
    def verbs(self) -> Verbs:
        """The verbs over the group's own device."""
        return self._verbs[self.group.device.type]

    def _open_lane(self, device_type: str) -> Verbs:
        """Open the CPU path of an accelerator's group when its first CPU tensor comes, on every rank alike."""
        if device_type != "cpu":
            raise ArgumentError(
                f"rank {self.group.rank} of {self.group.size}: the tensor is on {device_type!r}, but group "
                f"{self._name!r} is of backend {self.choice.backend.name!r} on {self.group.device.type!r}; "
                "move the tensor to world.device"
            )
        backend = next(found for name in _registry.backends() if (found := _registry.backend(name)).device_type == "cpu")
        group = self.group
        lane = Group(group.ranks, group.rank, backend.devices()[0], group.store, group.timeout, f"{group.name}/cpu")
        self._verbs["cpu"] = open_verbs(backend, lane)
        return self._verbs["cpu"]

    # What torch asks a group about itself.

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "devices"

    def name(self) -> str:
        return "devices"

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:
        return self._name

    def _set_group_desc(self, description: str) -> None:
        self._description = description

    @property
    def group_desc(self) -> str:
        return self._description

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(kind) for kind in dict.fromkeys(("cpu", self.group.device.type))]

    def get_group_store(self) -> dist.Store:
        return self.group.store.torch

    def _set_sequence_number_for_group(self) -> None:
        """Do nothing: our verbs number themselves."""

    def _get_sequence_number_for_group(self) -> int:
        return 0

    def abort(self) -> None:
        for verbs in self._verbs.values():
            verbs.abort()

    def shutdown(self) -> None:
        for verbs in self._verbs.values():
            verbs.close()

    # The verbs, as torch calls them.

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        op, factor = _op(opts)
        if self.group.size == 1 and factor is None:
            for tensor in tensors:
                check_reduction(op, tensor.dtype)
            return DoneWork(tensors)
        started = [self._all_reduce(tensor, op, factor, _is_async(opts)) for tensor in map(_plain, tensors)]
        return _work(started, tensors, opts)

    def _all_reduce(self, tensor: Tensor, op: str, factor: Any, async_op: bool) -> Started:
        if tensor.is_sparse:
            return self._all_reduce_sparse(tensor, op)
        check_reduction(op, tensor.dtype)
        if factor is not None:
            tensor.mul_(factor)
        flat, finish = _flat_in_place(tensor)
        return self.verbs_on(tensor.device.type).all_reduce(flat, op, async_op=async_op), finish

    def _all_reduce_sparse(self, tensor: Tensor, op: str) -> Started:
        """Add sparse tensors up: every rank gathers the others' indices and values and lets torch coalesce them."""
        if op != "sum":
            raise UnsupportedError(f"all_reduce of a sparse tensor is a sum; {op!r} was asked for")
        mine, verbs = tensor.coalesce(), self.verbs_on(tensor.device.type)
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
        total = torch.sparse_coo_tensor(parts[0].t(), parts[1], tensor.shape).coalesce()
        return _NOTHING, lambda: tensor.copy_(total)

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        op, factor = _op(opts)
        started = []
        for same in _by_dtype(tensors, lambda tensor: tensor.dtype):
            flat = torch.cat([_flat(tensor) for tensor in same])
            pending, _ = self._all_reduce(flat, op, factor, _is_async(opts))
            started.append((pending, lambda flat=flat, same=same: _unpack(flat, same)))
        return _work(started, tensors, opts)

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        tensor = _plain(tensors[opts.rootTensor])
        flat, finish = _flat_in_place(tensor)
        pending = self.verbs_on(tensor.device.type).broadcast(flat, opts.rootRank, async_op=_is_async(opts))
        return _work([(pending, finish)], tensors, opts)

    def reduce(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:
        op, factor = _op(opts)
        tensor = _plain(tensors[opts.rootTensor])
        check_reduction(op, tensor.dtype)
        if factor is not None:
            tensor.mul_(factor)
        flat, finish = _flat_in_place(tensor)
        pending = self.verbs_on(tensor.device.type).reduce(flat, opts.rootRank, op, async_op=_is_async(opts))
        return _work([(pending, finish)], tensors, opts)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        flat, finish = _flat_in_place(_plain(output))
        pending = self.verbs_on(input.device.type).all_gather(flat, _flat(input), async_op=_is_async(opts))
        return _work([(pending, finish)], [output], opts)

    def allgather(
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        started = [self._all_gather_list(*pair, _is_async(opts)) for pair in zip(outputs, inputs, strict=True)]
        return _work(started, outputs, opts)

    def _all_gather_list(self, outputs: Sequence[Tensor], input: Tensor, async_op: bool) -> Started:
        counts = [output.numel() for output in outputs]
        flat = input.new_empty(sum(counts))
        pending = self.verbs_on(input.device.type).all_gather(flat, _flat(input), counts, async_op=async_op)
        return pending, lambda: _unpack(flat, outputs)

    def allgather_coalesced(
        self, output_lists: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        # Unlike allgather's, each inner list holds one rank's tensors.
        return self.allgather(list(zip(*output_lists, strict=True)), inputs, opts)

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        size, mine = self.group.size, torch.cat([_bytes(input) for input in inputs])
        everyone = mine.new_empty(size * mine.numel())
        pending = self.verbs_on(mine.device.type).all_gather(everyone, mine, async_op=_is_async(opts))

        def finish() -> None:
            parts = everyone.view(size, -1).split([_byte_count(input) for input in inputs], dim=1)
            for output, input, part in zip(outputs, inputs, parts, strict=True):
                output.copy_(part.reshape(-1).view(input.dtype).view(output.shape))

        return _work([(pending, finish)], outputs, opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        return _work([self._reduce_scatter(output, _flat(input), None, opts)], [output], opts)

    def reduce_scatter(
        self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None
    ) -> dist.Work:
        started = []
        for output, parts in zip(outputs, inputs, strict=True):
            counts = [part.numel() for part in parts]
            flat = torch.cat([part.detach().reshape(-1) for part in parts])
            started.append(self._reduce_scatter(output, flat, counts, opts))
        return _work(started, outputs, opts)

    def _reduce_scatter(self, output: Tensor, flat: Tensor, counts: Sequence[int] | None, opts: Any) -> Started:
        op, factor = _op(opts)
        check_reduction(op, flat.dtype)
        if factor is not None:
            flat = flat * factor
        target, finish = _flat_in_place(_plain(output))
        return self.verbs_on(flat.device.type).reduce_scatter(target, flat, op, counts, async_op=_is_async(opts)), finish

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        size, started = self.group.size, []
        for same in _by_dtype(range(len(inputs)), lambda place: inputs[place].dtype):
            rows = torch.cat([inputs[place].detach().reshape(size, -1) for place in same], dim=1)
            mine = rows.new_empty(rows.shape[1])
            pending, _ = self._reduce_scatter(mine, rows.reshape(-1), None, opts)
            targets = [outputs[place] for place in same]
            started.append((pending, lambda mine=mine, targets=targets: _unpack(mine, targets)))
        return _work(started, outputs, opts)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_splits: Sequence[int] | None = None,
        input_splits: Sequence[int] | None = None,
        opts: Any = None,
    ) -> dist.Work:
        flat, finish = _flat_in_place(_plain(output))
        pending = self.verbs_on(input.device.type).all_to_all(
            flat, _flat(input), _element_counts(output, output_splits), _element_counts(input, input_splits),
            async_op=_is_async(opts),
        )  # fmt: skip
        return _work([(pending, finish)], [output], opts)

    def alltoall(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> dist.Work:
        flat = torch.cat([input.detach().reshape(-1) for input in inputs])
        output_counts = [output.numel() for output in outputs]
        target = flat.new_empty(sum(output_counts))
        pending = self.verbs_on(flat.device.type).all_to_all(
            target, flat, output_counts, [input.numel() for input in inputs], async_op=_is_async(opts)
        )
        return _work([(pending, lambda: _unpack(target, outputs))], outputs, opts)

    def gather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None) -> dist.Work:
        input, targets = inputs[0], outputs[0] if self.group.rank == opts.rootRank else ()
        flat = input.new_empty(sum(target.numel() for target in targets)) if targets else None
        # gather's counts are known on the root only, and equal; so are torch's own.
        pending = self.verbs_on(input.device.type).gather(flat, _flat(input), opts.rootRank, async_op=_is_async(opts))
        return _work([(pending, None if flat is None else lambda: _unpack(flat, targets))], outputs, opts)

    def scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None) -> dist.Work:
        is_root = self.group.rank == opts.rootRank
        flat = torch.cat([part.detach().reshape(-1) for part in inputs[0]]) if is_root else None
        target, finish = _flat_in_place(_plain(outputs[0]))
        pending = self.verbs_on(outputs[0].device.type).scatter(target, flat, opts.rootRank, async_op=_is_async(opts))
        return _work([(pending, finish)], outputs, opts)

    def barrier(self, opts: Any = None) -> dist.Work:
        return _work([(self.verbs.barrier(async_op=_is_async(opts)), None)], [], opts)

    def send(self, tensors: Sequence[Tensor], dst: int, tag: int = 0) -> dist.Work:
        tensor = _plain(tensors[0])
        return _work([(self.verbs_on(tensor.device.type).send(_flat(tensor), dst, tag, async_op=True), None)], tensors, None)

    def recv(self, tensors: Sequence[Tensor], src: int, tag: int = 0) -> dist.Work:
        flat, finish = _flat_in_place(_plain(tensors[0]))
        return _work([(self.verbs_on(flat.device.type).recv(flat, src, tag, async_op=True), finish)], tensors, None)

    # The same under the names that torch used before 2.13.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


_NOTHING = DoneWork(None)


def _work(started: Sequence[Started], tensors: Any, opts: Any) -> dist.Work:
    """Return torch's work for what was started: done, if it was not to be asynchronous."""
    if _is_async(opts):
        return PendingWork(started, tensors)
    for _, finish in started:
        if finish is not None:
            finish()
    return DoneWork(tensors)


def _op(opts: Any) -> tuple[str, Any]:
    """Return our reduce op, and the factor of a premultiplied sum."""
    if opts is None:
        return "sum", None
    name = _torch.reduce_op_name(opts.reduceOp)
    return ("sum", opts.reduceOp.factor) if name == "premul" else (name, None)


def _is_async(opts: Any) -> bool:
    # Callers that pass no options wait for the work by themselves.
    return opts is None or opts.asyncOp


def _plain(tensor: Tensor) -> Tensor:
    """Return `tensor` as autograd does not see it: torch's verbs write through, whatever requires grad."""
    return tensor.detach() if tensor.requires_grad else tensor


def _flat(tensor: Tensor) -> Tensor:
    return _plain(tensor).reshape(-1)


def _flat_in_place(tensor: Tensor) -> tuple[Tensor, Callable[[], object] | None]:
    """Return a flat tensor to write to, and how to bring a non-contiguous tensor its content afterwards."""
    if tensor.is_contiguous():
        return tensor.view(-1), None
    flat = tensor.reshape(-1)
    return flat, lambda: tensor.copy_(flat.view(tensor.shape))


def _bytes(tensor: Tensor) -> Tensor:
    return _flat(tensor).view(torch.uint8)


def _byte_count(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unpack(flat: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the pieces of `flat`, one after another, into `targets`."""
    parts = flat.split([target.numel() for target in targets])
    for target, part in zip(targets, parts, strict=True):
        _plain(target).copy_(part.view(target.shape))


def _element_counts(tensor: Tensor, splits: Sequence[int] | None) -> list[int] | None:
    """Return elements per rank for torch's split sizes, which count rows of dim 0."""
    if not splits:
        return None
    row = tensor.shape[1:].numel()
    return [split * row for split in splits]


def _by_dtype(items: Iterable[T], dtype_of: Callable[[T], torch.dtype]) -> list[list[T]]:
    """Return `items` in lists of one dtype each, in order of first appearance."""
    found: dict[torch.dtype, list[T]] = {}
    for item in items:
        found.setdefault(dtype_of(item), []).append(item)
    return list(found.values())


def create_process_group(options: Any, choice: object = None) -> DevicesGroup:
    """Open a group for torch, which calls this on every member.

    Args:
        options: torch's `_DistributedBackendOptions`: store, timeout, ranks and name.
        choice: the `Choice` that `devices.init` hands on as `pg_options`; without one the world's own is
            taken, or "auto" when the world itself is being made.
    """
    world = dist.group.WORLD if dist.is_initialized() else None
    if not isinstance(choice, _registry.Choice):
        choice = world.choice if isinstance(world, DevicesGroup) else _registry.choose("auto")
    ranks = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
    group = Group(
        ranks, options.group_rank, my_device(choice.backend), Store(options.store), options.timeout, options.group_id
    )
    if os.environ.get("DEVICES_NO_PICKLE") == "1":
        _torch.refuse_object_collectives(lambda group: isinstance(group, DevicesGroup), _pickle_refused)
    return DevicesGroup(group, choice)


def _pickle_refused() -> UnsupportedError:
    return UnsupportedError(
        "DEVICES_NO_PICKLE=1 refuses torch's object collectives, which pickle; "
        "exchange tensors by devices.all_gather, or JSON through a file"
    )
