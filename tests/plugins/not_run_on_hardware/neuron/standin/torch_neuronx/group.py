"""The process group "neuron": what the pre-release one takes and refuses, carried by gloo."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, final
from weakref import WeakSet

import torch
import torch.distributed as dist

from . import limits, machine
from .tensors import on_cpu

Tensor = torch.Tensor

_open: WeakSet[ProcessGroupNeuron] = WeakSet()
_world_size: int | None = None


def register() -> None:
    """Tell torch of the group, in the way of the pre-release one: without the extended creator."""
    dist.Backend.register_backend("neuron", _create, devices=["neuron"])


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroupNeuron:
    return ProcessGroupNeuron(store, rank, size, timeout)


@final
class _NeuronWork(dist.Work):
    def __init__(self, work: Any, outputs: list[Tensor], finish: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._work = work
        self._outputs = outputs
        self._finish = finish

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._work.wait()
        if self._finish is not None:
            self._finish()
            self._finish = None
        return True

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def result(self) -> list[Tensor]:
        return self._outputs

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        self.wait()
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        future.set_result(self._outputs)
        return future


class ProcessGroupNeuron(dist.ProcessGroup):
    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        global _world_size
        super().__init__(rank, size)
        limits.check_size(size, "a group")
        if size > 1 and len([group for group in _open if group.size() > 1]) >= limits.MAX_GROUPS:
            raise RuntimeError(f"there are {limits.MAX_GROUPS} replica groups, and no more are possible")
        local = int(os.environ.get("LOCAL_RANK", str(rank)))
        if _world_size is None:
            machine.enter_world(local, int(os.environ.get("LOCAL_WORLD_SIZE", str(size))))
            _world_size = size
        self._check_places(store, rank, size, f"{os.environ.get('GROUP_RANK', '0')}:{local}")
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._gloo.barrier().wait()
        self._name = ""
        _open.add(self)

    def _check_places(self, store: dist.Store, rank: int, size: int, place: str) -> None:
        """Raise unless the group is symmetric (3.3): the same places on each node that it reaches."""
        store.set(f"place/{rank}", place)
        nodes: dict[str, list[int]] = {}
        for member in range(size):
            node, _, local = store.get(f"place/{member}").decode().partition(":")
            nodes.setdefault(node, []).append(int(local))
        first, *others = [sorted(places) for places in nodes.values()]
        if any(places != first for places in others):
            raise RuntimeError(f"replica group is not symmetric over its nodes: {nodes}")
        if others and size == _world_size and len(first) != machine.total_cores():
            # 3.3: several instances are used with every core of each.
            raise RuntimeError(f"{len(first)} of {machine.total_cores()} cores of each of {len(nodes)} nodes")

    # What torch asks a group about itself.

    def getBackendName(self) -> str:
        return "neuron"

    def name(self) -> str:
        return "neuron"

    def _set_group_name(self, name: str) -> None:
        self._name = name

    def _get_backend(self, device: torch.device) -> ProcessGroupNeuron:
        return self

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("neuron")]

    def shutdown(self) -> None:
        _open.discard(self)
        self._gloo.shutdown()

    # What all verbs have in common.

    def _start(self, verb: str, tensors: Sequence[Tensor], start: Callable[..., Any], outputs: Sequence[Tensor]) -> Any:
        self._check(verb, tensors)
        return _NeuronWork(start(*map(_narrowed, map(on_cpu, tensors))), list(outputs))

    def _check(self, verb: str, tensors: Sequence[Tensor]) -> None:
        dist.get_process_group_ranks(self)  # the pre-release group asks torch for them in each verb
        for tensor in tensors:
            if tensor.device != torch.device("neuron", machine.current_device()):
                raise RuntimeError(f"{verb}: the tensor is on {tensor.device}, not on this process's device")
            if tensor.dim() == 0 or tensor.size(0) == 0:
                # 3.3, pre-release group.
                raise ValueError(f"tensors cannot have zero size in dimension 0, found: {tuple(tensor.shape)}")
            if not tensor.is_contiguous():
                raise RuntimeError(f"{verb}: the tensor is not contiguous")

    def _op(self, verb: str, tensor: Tensor, options: Any) -> Any:
        """Return the reduce op, having checked that it is there (3.2)."""
        op = options.reduceOp if options is not None else dist.ReduceOp.SUM
        name = next((name for name in limits.REDUCE_OPS if op == getattr(dist.ReduceOp, name)), None)
        if name is None:
            raise RuntimeError(f"{verb}: reduce op {op} is not supported; there are {', '.join(limits.REDUCE_OPS)}")
        if tensor.dtype not in limits.REDUCED:
            raise RuntimeError(f"{verb}: {tensor.dtype} is not reduced (EVRF061, EVRF063)")
        return op

    # The verbs.

    def allreduce(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> Any:
        (tensor,) = [tensors] if isinstance(tensors, Tensor) else tensors
        op = self._op("allreduce", tensor, opts)
        return self._start("allreduce", [tensor], lambda data: self._reduced(data, op), [tensor])

    def _reduced(self, data: Tensor, op: Any) -> Any:
        options = dist.AllreduceOptions()
        options.reduceOp = op
        return self._gloo.allreduce([data], options)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Any:
        # 3.2: zeros on all but the root, and the sum.
        (tensor,) = tensors
        if self.rank() != opts.rootRank:
            tensor.zero_()
        self._op("broadcast", tensor, None)
        return self._start("broadcast", tensors, lambda data: self._reduced(data, dist.ReduceOp.SUM), tensors)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        # 3.2: an all-reduce, of a copy where the result is not wanted.
        (tensor,) = tensors
        op = self._op("reduce", tensor, opts)
        target = tensor if self.rank() == opts.rootRank else tensor.clone()
        return self._start("reduce", [target], lambda data: self._reduced(data, op), [target])

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        if output.numel() != self.size() * input.numel():
            raise ValueError(f"an output of {output.numel()} elements for {self.size()} times {input.numel()}")
        return self._start("all_gather", [output, input], self._gathered, [output])

    def _gathered(self, output: Tensor, input: Tensor) -> Any:
        return self._gloo._allgather_base(output.view(torch.uint8), input.view(torch.uint8))

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        (targets,), (input,) = outputs, inputs

        def start(input: Tensor, *targets: Tensor) -> Any:
            rows = [target.view(torch.uint8) for target in targets]
            return self._gloo.allgather([rows], [input.view(torch.uint8)])

        return self._start("allgather", [input, *targets], start, targets)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        # 3.2: an all-gather.
        (input,) = inputs
        targets = outputs[0] if self.rank() == opts.rootRank else [torch.empty_like(input) for _ in range(self.size())]
        return self.allgather([targets], inputs)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        if input.numel() != self.size() * output.numel():
            raise ValueError(f"an input of {input.numel()} elements for {self.size()} times {output.numel()}")
        op = self._op("reduce_scatter", input, opts)

        self._check("reduce_scatter", [output, input])
        # gloo's own says that it is done only once it has been waited for.
        data = on_cpu(input).clone()
        mine = data.view(self.size(), -1)[self.rank()]
        return _NeuronWork(self._reduced(data, op), [output], lambda: on_cpu(output).view(-1).copy_(mine))

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        (output,), (parts,) = outputs, inputs
        if any(part.shape != output.shape for part in parts):
            raise ValueError("reduce_scatter takes parts of one shape")
        return self.reduce_scatter_single(output, torch.cat([part.reshape(-1) for part in parts]), opts)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        # 3.2: a reduce-scatter by sum, of zeros on all but the root.
        (output,) = outputs
        zeros = [torch.zeros_like(output) for _ in range(self.size())]
        return self.reduce_scatter(outputs, inputs if self.rank() == opts.rootRank else [zeros])

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int], opts: Any = None
    ) -> Any:
        for splits in (output_splits, input_splits):
            # 3.3, pre-release group: equal splits, or all ones.
            if splits and any(split != 1 for split in splits):
                raise NotImplementedError(f"alltoall_base: Only even split sizes are supported. Got {splits}")
        if input.size(0) % self.size() or input.shape != output.shape:
            raise ValueError(f"{input.size(0)} rows do not divide among {self.size()} ranks")
        ranks, world = dist.get_process_group_ranks(self), dist.get_world_size()
        # 3.3, pre-release group: the world's ranks, in their order, are divided into groups of that size.
        if world % self.size() or ranks != list(range(ranks[0], ranks[0] + len(ranks))) or ranks[0] % self.size():
            raise ValueError(f"all_to_all over ranks {ranks} of {world}: groups are consecutive and divide the world")
        return self._start("alltoall", [output, input], self._exchanged, [output])

    def _exchanged(self, output: Tensor, input: Tensor) -> Any:
        return self._gloo.alltoall_base(output.view(torch.uint8), input.view(torch.uint8), [], [])

    def barrier(self, opts: Any = None) -> Any:
        if dist.get_world_size() != self.size():
            # 3.3, pre-release group.
            raise NotImplementedError(f"Barrier is implemented only for default group, called barrier on {self}")
        return _NeuronWork(self._gloo.barrier(), [])

    def _missing(self, *args: Any, **kwargs: Any) -> Any:
        """3.2: the pre-release group has no messages between two ranks."""
        raise NotImplementedError("ProcessGroupNeuron has no send, recv, recv_anysource or monitored_barrier")

    send = recv = recv_anysource = monitored_barrier = _missing

    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single


def _narrowed(data: Tensor) -> Tensor:
    """Return what travels: of a dtype that is narrowed on the way, in place, what is left."""
    if (narrow := limits.NARROWED.get(data.dtype)) is not None:
        data.copy_(data.to(narrow))
    return data
