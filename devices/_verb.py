"""One verb over one or many tensors: packed by dtype, started, waited for, unpacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from devices import _packing
from devices._backend import Pending
from devices._compiled import apply_compiled, compiled_barrier, compiled_recv, compiled_send
from devices._flat import Call, Differentiable
from devices._groups import GroupLike, compiled_group, own_verbs, verbs_over
from devices._packing import Tensor, Tensors
from devices._work import Together, Work
from devices.algorithms.arithmetic import check_reduction
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.errors import ArgumentError, UnsupportedError


@final
@dataclass(frozen=True, slots=True)
class _Job:
    """The tensors of one dtype, as one call.

    Args:
        places: which of the verb's tensors they are.
        given: the flat tensor to call with.
        call: the call.
        shapes: those of the results.
        unpack: from the flat result to tensors of those shapes.
        in_order: whether the flat result of a single tensor is that tensor's memory, element for element.
    """

    places: list[int]
    given: Tensor
    call: Call
    shapes: list[torch.Size]
    unpack: Callable[[Tensor], list[Tensor]]
    in_order: bool


@final
class Verb:
    """A call of a public verb in the making.

    Args:
        name: the verb's, for messages.
        x: what the user passed.
        group: what the verb is called over.
    """

    def __init__(self, name: str, x: Tensors, group: GroupLike) -> None:
        self.name = name
        self._tensors, self._rebuild = _packing.unwrap(x, name)
        if not self._tensors:
            raise ArgumentError(f"{name}: the list of tensors is empty")
        self._compiling = torch.compiler.is_compiling()
        if self._compiling:
            self._group_name, self.rank, self.size = compiled_group(group)
        else:
            self.verbs = verbs_over(group, self._tensors[0].device)
            self.rank, self.size = self.verbs.group.rank, self.verbs.group.size
            self._check_tensors()
        self._jobs: list[_Job] = []

    def error(self, text: str) -> ArgumentError:
        """Return an error that says which verb on which rank of which group."""
        return ArgumentError(f"{self.name} on rank {self.rank} of {self.size}: {text}")

    def _check_tensors(self) -> None:
        kind = self._tensors[0].device.type
        for tensor in self._tensors:
            if tensor.device.type != kind:
                raise self.error(f"the tensors lie on {kind} and on {tensor.device.type}; move them to one device")
            if hasattr(tensor, "placements"):
                raise self.error(
                    "a DTensor was given; pass x.to_local() for this rank's part, or let x.redistribute() or "
                    "x.full_tensor() move the whole"
                )

    def check_rank(self, which: str, rank: int) -> int:
        """Return `rank`, the value of the keyword `which`, if the group has it."""
        if not isinstance(rank, int) or not 0 <= rank < self.size:
            raise self.error(f"{which}={rank!r}, but the group's ranks are 0 to {self.size - 1}")
        return rank

    def check_sizes(self, sizes: Sequence[int] | None, what: str = "sizes") -> list[int] | None:
        """Return `sizes` as a list of one size for each rank, or None."""
        if sizes is None:
            return None
        sizes = list(sizes)
        if len(sizes) != self.size or any(not isinstance(size, int) or size < 0 for size in sizes):
            raise self.error(f"{what}= must hold {self.size} sizes, one for each rank, none negative; got {sizes}")
        return sizes

    def equal_parts(self, dim: int) -> list[int]:
        """Return the sizes of all ranks' parts where `dim` is to be split evenly."""
        length = self.length(dim)
        if length % self.size:
            raise self.error(
                f"dim {dim} has size {length}, which {self.size} ranks do not divide; pass sizes= with each rank's "
                "part, the same on every rank"
            )
        return [length // self.size] * self.size

    def length(self, dim: int) -> int:
        """Return the size along `dim`, which all tensors of the call must share."""
        lengths = {1 if tensor.ndim == 0 else tensor.shape[self._dim(tensor, dim)] for tensor in self._tensors}
        if len(lengths) > 1:
            raise self.error(f"the tensors have sizes {sorted(lengths)} along dim {dim}; sizes= needs one size")
        return lengths.pop()

    def _dim(self, tensor: Tensor, dim: int) -> int:
        dims = max(tensor.ndim, 1)
        if not isinstance(dim, int) or not -dims <= dim < dims:
            raise self.error(f"dim={dim!r}, but the tensor of shape {tuple(tensor.shape)} has {tensor.ndim} dims")
        return dim % dims

    def whole(self, name: str, **call: Any) -> Verb:
        """Let each tensor go as it is and come back in its own shape."""
        for places in _packing.by_dtype(self._tensors):
            tensors = [self._tensors[place] for place in places]
            self._check_op(name, tensors[0].dtype, call)
            shapes = [tensor.shape for tensor in tensors]
            unpack = lambda flat, shapes=shapes: _packing.unpack(flat, shapes)  # noqa: E731
            self._jobs.append(_Job(places, _packing.pack(tensors), Call(name, **call), shapes, unpack, True))
        return self

    def parts(self, name: str, dim: int, given: Sequence[int], coming: Sequence[int], **call: Any) -> Verb:
        """Let each tensor go in parts and come back in parts, along `dim`.

        Args:
            name: the verb of the call.
            dim: the dim that is split and joined.
            given: the sizes along `dim` of the parts of what is given.
            coming: the sizes along `dim` of the parts of the result.
            call: the rest of the call; `counts` and `sent` in sizes along `dim`, turned into elements here.
        """
        by_dim: dict[tuple[torch.dtype, int], list[int]] = {}
        for place, tensor in enumerate(self._tensors):
            by_dim.setdefault((tensor.dtype, self._dim(tensor, dim)), []).append(place)
        for (dtype, at), places in by_dim.items():
            tensors = [self._tensors[place] for place in places]
            self._check_op(name, dtype, call)
            rows = [_packing.row_of(tensor, at) for tensor in tensors]
            width = sum(row.numel() for row in rows)
            in_elements = {
                key: tuple(size * width for size in call[key]) for key in ("counts", "sent") if key in call
            }
            shapes = [torch.Size((*row[:at], sum(coming), *row[at:])) for row in rows]
            unpack = lambda flat, rows=rows, at=at: _packing.unpack_parts(flat, rows, at, coming)  # noqa: E731
            if name == "scatter" and self.rank != call["root"]:
                # Nothing is read here; the node of a gradient needs the right size, and that alone.
                blank = torch.zeros(1, dtype=dtype, device=tensors[0].device)
                given_flat = blank.requires_grad_(tensors[0].requires_grad).expand(width * sum(given))
            else:
                given_flat = _packing.pack_parts(tensors, at, given)
            self._jobs.append(_Job(places, given_flat, Call(name, **(call | in_elements)), shapes, unpack, at == 0))
        return self

    def _check_op(self, name: str, dtype: torch.dtype, call: dict[str, Any]) -> None:
        if name in ("all_reduce", "reduce", "reduce_scatter"):
            check_reduction(call["op"], dtype)

    def run(self, out: Tensors | None, async_op: bool, *, here: bool = True) -> Any:
        """Start the verb; return its `Work`, or wait and return its result.

        Args:
            out: the user's.
            async_op: the user's.
            here: whether this rank gets a result; where it does not, the result is None.
        """
        if self._compiling:
            return self._run_compiled(out, async_op, here)
        targets = self.check_out(out) if here and out is not None else None
        pendings: list[Pending] = []
        flats: list[Tensor] = []
        for job in self._jobs:
            if job.given.requires_grad and torch.is_grad_enabled():
                if out is not None:
                    raise self.error("out= was given, but the input requires grad; leave out= away, or detach() it")
                flats.append(Differentiable.apply(job.given, job.call, self.verbs, pendings, async_op))
                continue
            into = None if targets is None else _flat_target(job, targets)
            pending, flat = job.call.start(self.verbs, job.given, into, async_op=async_op)
            pendings.append(pending)
            flats.append(flat)

        with_gradient = torch.is_grad_enabled()

        def finish() -> Any:
            if not here:
                return None
            with torch.set_grad_enabled(with_gradient):
                return self._rebuild(self._unpacked(flats, targets))

        return Work(Together(pendings), finish) if async_op else finish()

    def _run_compiled(self, out: Tensors | None, async_op: bool, here: bool) -> Any:
        if out is not None or async_op:
            raise UnsupportedError(f"{self.name}: out= and async_op= are not compiled; leave them away")
        flats = [apply_compiled(job.call, job.given, self.rank, self._group_name) for job in self._jobs]
        return self._rebuild(self._unpacked(flats, None)) if here else None

    def point_to_point(self, which: str, peer: int, tag: int, out: Tensors | None, async_op: bool) -> Any:
        """Send to rank `peer` if `which` is "dst", receive from it if it is "src"."""
        if self.check_rank(which, peer) == self.rank:
            raise self.error(f"{which}={peer} is this rank itself")
        if not isinstance(tag, int) or not 0 <= tag < COLLECTIVE_TAG:
            raise self.error(f"tag={tag!r} is not between 0 and {COLLECTIVE_TAG - 1}")
        sends = which == "dst"
        if sends and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors):
            raise self.error("the tensor requires grad; detach() it, or use permute, whose gradient is defined")
        self.whole(self.name)
        targets = None if out is None else self.check_out(out)
        if self._compiling:
            if out is not None or async_op:
                raise UnsupportedError(f"{self.name}: out= and async_op= are not compiled; leave them away")
            if sends:
                for job in self._jobs:
                    compiled_send(job.given, peer, tag, self._group_name)
                return None
            flats = [compiled_recv(job.given.detach(), peer, tag, self._group_name) for job in self._jobs]
            return self._rebuild(self._unpacked(flats, None))
        pendings, flats = [], []
        for job in self._jobs:
            if sends:
                pendings.append(self.verbs.send(job.given.contiguous(), peer, tag, async_op=async_op))
                continue
            flat = None if targets is None else _flat_target(job, targets)
            flats.append(job.given.detach().new_empty(job.given.numel()) if flat is None else flat)
            pendings.append(self.verbs.recv(flats[-1], peer, tag, async_op=async_op))

        def finish() -> Any:
            return None if sends else self._rebuild(self._unpacked(flats, targets))

        return Work(Together(pendings), finish) if async_op else finish()

    @staticmethod
    def barrier(group: GroupLike, async_op: bool) -> Any:
        """Wait for every rank of `group`."""
        if torch.compiler.is_compiling():
            if async_op:
                raise UnsupportedError("barrier: async_op= is not compiled; leave it away")
            name, _, _ = compiled_group(group)
            return compiled_barrier(torch.empty(0), name)
        pending = own_verbs(group).barrier(async_op=async_op)
        return Work(pending, lambda: None) if async_op else None

    def _unpacked(self, flats: Sequence[Tensor], targets: Sequence[Tensor] | None) -> list[Tensor]:
        results: list[Any] = [None] * len(self._tensors)
        for job, flat in zip(self._jobs, flats, strict=True):
            for place, result in zip(job.places, job.unpack(flat), strict=True):
                if targets is None:
                    results[place] = result
                    continue
                target = results[place] = targets[place]
                if target.data_ptr() != result.data_ptr():
                    target.copy_(result)
        return results

    def check_out(self, out: Tensors, dtypes: Sequence[torch.dtype] | None = None) -> list[Tensor]:
        """Return the tensors of `out`, checked against what the verb will return, of `dtypes` where given."""
        targets, _ = _packing.unwrap(out, self.name)
        if len(targets) != len(self._tensors):
            raise self.error(f"out= holds {len(targets)} tensors, the input {len(self._tensors)}")
        for job in self._jobs:
            for place, shape in zip(job.places, job.shapes, strict=True):
                target, kind = targets[place], job.given.device.type
                dtype = job.given.dtype if dtypes is None else dtypes[place]
                if target.shape != shape or target.dtype != dtype or target.device.type != kind:
                    raise self.error(
                        f"out= is of shape {tuple(target.shape)}, {target.dtype} on {target.device.type}, but the "
                        f"result is of shape {tuple(shape)}, {dtype} on {kind}"
                    )
                if target.requires_grad:
                    raise self.error("out= requires grad and would be written in place; detach() it")
        return targets


def _flat_target(job: _Job, targets: Sequence[Tensor]) -> Tensor | None:
    """Return the user's tensor as the flat result itself, where it can be."""
    target = targets[job.places[0]]
    if len(job.places) > 1 or not job.in_order or not target.is_contiguous():
        return None
    overlaps = target.untyped_storage().data_ptr() == job.given.untyped_storage().data_ptr()
    return target.view(-1) if not overlaps or job.call.verb == "all_reduce" else None
