"""One verb over one or many tensors: packed by dtype, started, waited for, unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.autograd.graph import increment_version

from devices._backend import Pending
from devices._work import Together, Work
from devices.algorithms.arithmetic import MEANINGFUL, check_reduction
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.calls import packing
from devices.calls.compiled import apply_compiled, compiled_recv, compiled_send
from devices.calls.flat import Call, differentiable, in_memory
from devices.calls.groups import GroupLike, compiled_group, process_group, verbs_over
from devices.calls.packing import Tensor, Tensors
from devices.errors import ArgumentError, DevicesError, RaceError, UnsupportedError

COPIED = ("all_reduce", "broadcast", "reduce")
"""The verbs that are done in place, on a copy of their input."""

Shares = Callable[[Tensor, int], tuple[Sequence[int], Sequence[int]]]
"""From a tensor and its dim: along it, the sizes of the parts that it goes in, and of those that it comes back in."""


@final
@dataclass(frozen=True)
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
        name: the verb's.
        x: what the user passed.
        group: what the verb is called over.
    """

    def __init__(self, name: str, x: Tensors, group: GroupLike) -> None:
        self.name = name
        self._compiling = torch.compiler.is_compiling()
        if self._compiling:
            self._group_name, self.rank, self.size = compiled_group(group)
        else:
            group = process_group(group)
            self.rank, self.size = group.rank(), group.size()
        try:
            self.tensors, self.rebuild = packing.unwrap(x)
        except ArgumentError as error:
            raise self.error(error) from None
        if not self.tensors:
            raise self.error(f"the {type(x).__name__} of tensors is empty")
        if not self._compiling:
            self._check_tensors()
            self.verbs = verbs_over(group, self.tensors[0])
        self._jobs: list[_Job] = []

    def error(self, text: object, kind: type[DevicesError] = ArgumentError) -> DevicesError:
        """Return an error that says which verb on which rank of which size."""
        return kind(f"{self.name} on rank {self.rank} of {self.size}: {text}")

    def _check_tensors(self) -> None:
        kind = self.tensors[0].device.type
        for tensor in self.tensors:
            if tensor.device.type != kind:
                raise self.error(f"the tensors lie on {kind} and on {tensor.device.type}; move them to one device")
            if hasattr(tensor, "placements"):
                raise self.error(
                    "a DTensor was given; pass x.to_local() for this rank's part, or let x.redistribute() or "
                    "x.full_tensor() move the whole"
                )
            if tensor.layout is not torch.strided:
                raise self.error(f"a tensor of layout {tensor.layout} was given; pass x.to_dense()")

    def check_rank(self, which: str, rank: int) -> int:
        """Return `rank`, the value of the keyword `which`, if the group has it."""
        if not isinstance(rank, int) or not 0 <= rank < self.size:
            raise self.error(f"{which}={rank!r}, but the group's ranks are 0 to {self.size - 1}")
        return rank

    def _check_sizes(self, sizes: Sequence[int], what: str = "sizes") -> list[int]:
        """Return `sizes` as a list of one size for each rank."""
        if not isinstance(sizes, Iterable):
            raise self.error(f"{what}= must hold {self.size} sizes, one for each rank; got {sizes!r}")
        found = list(sizes)
        if len(found) != self.size or any(not isinstance(size, int) or size < 0 for size in found):
            raise self.error(f"{what}= must hold {self.size} sizes, one for each rank, none negative; got {found}")
        return found

    def _dim(self, tensor: Tensor, dim: int) -> int:
        dims = max(tensor.ndim, 1)
        if not isinstance(dim, int) or not -dims <= dim < dims:
            raise self.error(f"dim={dim!r}, but the tensor of shape {tuple(tensor.shape)} has {tensor.ndim} dims")
        return dim % dims

    # How each tensor is shared out along a dim.

    def joined(self, sizes: Sequence[int] | None) -> Shares:
        """Return the shares of a verb that sends each tensor whole and joins what comes from all ranks."""
        checked = None if sizes is None else self._check_sizes(sizes)

        def shares(tensor: Tensor, dim: int) -> tuple[Sequence[int], Sequence[int]]:
            length = _length(tensor, dim)
            if checked is None:
                return [length], [length] * self.size
            if checked[self.rank] != length:
                raise self.error(
                    f"sizes={checked} says {checked[self.rank]} for this rank, whose input has size {length} "
                    f"along dim {dim}"
                )
            return [length], checked

        return shares

    def split(self, sizes: Sequence[int] | None) -> Shares:
        """Return the shares of a verb that splits each tensor and returns one part."""
        checked = None if sizes is None else self._check_sizes(sizes)

        def shares(tensor: Tensor, dim: int) -> tuple[Sequence[int], Sequence[int]]:
            parts = self._parts_of(tensor, dim, checked, "sizes")
            return parts, [parts[self.rank]]

        return shares

    def swapped(self, sizes: Sequence[Sequence[int]] | None) -> Shares:
        """Return the shares of a verb that splits each tensor and joins what comes from all ranks."""
        if sizes is not None and not isinstance(sizes, Iterable):
            raise self.error(f"sizes= must hold {self.size} rows, one for each sending rank; got {sizes!r}")
        if sizes is not None and len(sizes) != self.size:
            raise self.error(f"sizes= must hold {self.size} rows, one for each sending rank; got {len(sizes)}")
        rows = None if sizes is None else [self._check_sizes(row, f"sizes[{at}]") for at, row in enumerate(sizes)]

        def shares(tensor: Tensor, dim: int) -> tuple[Sequence[int], Sequence[int]]:
            own = None if rows is None else rows[self.rank]
            parts = self._parts_of(tensor, dim, own, f"sizes[{self.rank}]")
            return parts, parts if rows is None else [row[self.rank] for row in rows]

        return shares

    def _parts_of(self, tensor: Tensor, dim: int, sizes: Sequence[int] | None, what: str) -> Sequence[int]:
        length = _length(tensor, dim)
        if sizes is None:
            if length % self.size:
                raise self.error(
                    f"dim {dim} has size {length}, which {self.size} ranks do not divide; pass sizes= with each "
                    "rank's part, the same on every rank"
                )
            return [length // self.size] * self.size
        if sum(sizes) != length:
            raise self.error(f"{what}={list(sizes)} adds up to {sum(sizes)}, but dim {dim} has size {length}")
        return sizes

    # The calls.

    def whole(self, **call: Any) -> Verb:
        """Let each tensor go as it is and come back in its own shape."""
        for places in self._by_dtype():
            tensors = [self.tensors[place] for place in places]
            self._check_op(tensors[0].dtype, call)
            shapes = [tensor.shape for tensor in tensors]
            unpack = lambda flat, shapes=shapes: packing.unpack(flat, shapes)  # noqa: E731
            self._jobs.append(_Job(places, packing.pack(tensors), Call(self.name, **call), shapes, unpack, True))
        return self

    def parts(self, dim: int, shares: Shares, **call: Any) -> Verb:
        """Let each tensor go in parts and come back in parts, along `dim`."""
        for places in self._by_dtype():
            tensors = [self.tensors[place] for place in places]
            self._check_op(tensors[0].dtype, call)
            dims = [self._dim(tensor, dim) for tensor in tensors]
            rows = [packing.row_of(tensor, at) for tensor, at in zip(tensors, dims, strict=True)]
            both = [shares(tensor, at) for tensor, at in zip(tensors, dims, strict=True)]
            going, coming = [sizes for sizes, _ in both], [sizes for _, sizes in both]
            if self.name in ("reduce_scatter", "scatter"):
                call["counts"] = _elements(rows, going)
            else:
                call["counts"] = _elements(rows, coming)
            if self.name == "all_to_all":
                call["sent"] = _elements(rows, going)
            if self.name == "scatter" and self.rank != call["root"] and not self._compiling:
                given = _unread(tensors, sum(call["counts"]))
            else:
                given = packing.pack_parts(tensors, dims, going)
            shapes = [
                torch.Size((*row[:at], sum(sizes), *row[at:]))
                for row, at, sizes in zip(rows, dims, coming, strict=True)
            ]
            unpack = lambda flat, rows=rows, dims=dims, coming=coming: packing.unpack_parts(flat, rows, dims, coming)  # noqa: E731
            in_order = len(tensors) == 1 and dims[0] == 0
            self._jobs.append(_Job(places, given, Call(self.name, **call), shapes, unpack, in_order))
        return self

    def _by_dtype(self) -> list[list[int]]:
        """Return the places of the tensors in lists of one dtype each."""
        found: dict[torch.dtype, list[int]] = {}
        for place, tensor in enumerate(self.tensors):
            found.setdefault(tensor.dtype, []).append(place)
        return list(found.values())

    def _check_op(self, dtype: torch.dtype, call: dict[str, Any]) -> None:
        if "op" in call and (call["op"], dtype) not in MEANINGFUL:
            if self._compiling:
                # What else is said, Dynamo does not trace.
                raise self.error(f"op {call['op']!r} is not known, or has no meaning on {dtype}")
            try:
                check_reduction(call["op"], dtype)
            except DevicesError as error:
                raise self.error(error, type(error)) from None

    # Running them.

    def run(self, out: Tensors | None, async_op: bool, *, here: bool = True) -> Any:
        """Start the verb; return its `Work`, or wait and return its result.

        Args:
            out: the user's.
            async_op: the user's.
            here: whether this rank gets a result; where it does not, the result is None.
        """
        if self._compiling:
            self._refuse_compiled(out, async_op)
            flats = [apply_compiled(job.call, job.given, self.rank, self._group_name) for job in self._jobs]
            return self.rebuild(self._unpacked(flats, None)) if here else None
        with_gradient = torch.is_grad_enabled()
        needs_gradient = with_gradient and any(job.given.requires_grad for job in self._jobs)
        targets = None if out is None else self.check_out(out, here=here, needs_gradient=needs_gradient)
        pendings: list[Pending] = []
        flats = []
        for job in self._jobs:
            if with_gradient and job.given.requires_grad:
                flats.append(differentiable(job.given, job.call, self.verbs, pendings, async_op=async_op))
            else:
                into = None if targets is None else _flat_target(job, targets)
                pending, flat = job.call.start(self.verbs, job.given, into, async_op=async_op)
                pendings.append(pending)
                flats.append(flat)

        unchanged = self._watch_inputs(targets) if async_op and self.name not in COPIED else None

        def finish() -> Any:
            if unchanged is not None:
                unchanged()
            if not here:
                return None
            # A `Work` may be waited for in another grad mode.
            with torch.set_grad_enabled(with_gradient):
                return self.rebuild(self._unpacked(flats, targets))

        return Work(Together(pendings), finish) if async_op else finish()

    def _watch_inputs(self, targets: Sequence[Tensor] | None = None) -> Callable[[], None]:
        """Return what raises if one of the tensors was changed in place since: the verb may have read either.

        Those that the verb itself writes are left out.
        """
        written = {target.untyped_storage().data_ptr() for target in targets or ()}
        seen = [
            (tensor, tensor._version)
            for tensor in self.tensors
            # torch counts the changes of a whole memory, not those of a part of it.
            if not tensor.is_inference()
            and tensor.nbytes == (memory := tensor.untyped_storage()).nbytes()
            and memory.data_ptr() not in written
        ]

        def check() -> None:
            for tensor, version in seen:
                if tensor._version != version:
                    raise self.error(
                        "a tensor was changed in place after the verb had been started and before it was waited for; "
                        "wait for its work first, or pass a clone",
                        RaceError,
                    )

        return check

    def send(self, dst: int, tag: int, async_op: bool) -> Any:
        """Send to rank `dst`."""
        self._check_message("dst", dst, tag)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors):
            raise self.error("the tensor requires grad; detach() it, or use permute, whose gradient is defined")
        self.whole()
        if self._compiling:
            self._refuse_compiled(None, async_op)
            for job in self._jobs:
                compiled_send(job.given, dst, tag, self._group_name)
            return None
        pendings = [self.verbs.send(in_memory(job.given), dst, tag, async_op=async_op) for job in self._jobs]
        return Work(Together(pendings), self._watch_inputs()) if async_op else None

    def recv(self, src: int, tag: int, out: Tensors | None, async_op: bool) -> Any:
        """Receive from rank `src`."""
        self._check_message("src", src, tag)
        self.whole()
        if self._compiling:
            self._refuse_compiled(out, async_op)
            flats = [compiled_recv(job.given.detach(), src, tag, self._group_name) for job in self._jobs]
            return self.rebuild(self._unpacked(flats, None))
        targets = None if out is None else self.check_out(out)
        pendings, flats = [], []
        for job in self._jobs:
            into = None if targets is None else _flat_target(job, targets, is_read=False)
            flat = job.given.new_empty(job.given.numel()) if into is None else into
            pendings.append(self.verbs.recv(flat, src, tag, async_op=async_op))
            flats.append(flat)

        def finish() -> Any:
            return self.rebuild(self._unpacked(flats, targets))

        return Work(Together(pendings), finish) if async_op else finish()

    def _check_message(self, which: str, peer: int, tag: int) -> None:
        if self.check_rank(which, peer) == self.rank:
            raise self.error(f"{which}={peer} is this rank itself")
        if not isinstance(tag, int) or not 0 <= tag < COLLECTIVE_TAG:
            raise self.error(f"tag={tag!r} is not between 0 and {COLLECTIVE_TAG - 1}")

    def _refuse_compiled(self, out: Tensors | None, async_op: bool) -> None:
        if out is not None or async_op:
            raise self.error("out= and async_op= are not compiled; leave them away", UnsupportedError)

    # Results.

    def _unpacked(self, flats: Sequence[Tensor], targets: Sequence[Tensor] | None) -> list[Tensor]:
        results: list[Any] = [None] * len(self.tensors)
        for job, flat in zip(self._jobs, flats, strict=True):
            for place, result in zip(job.places, job.unpack(flat), strict=True):
                if targets is None:
                    results[place] = result
                    continue
                target = results[place] = targets[place]
                if target.data_ptr() != result.data_ptr():
                    target.copy_(result)
                else:
                    increment_version(target)
        return results

    def check_out(
        self,
        out: Tensors,
        *,
        here: bool = True,
        needs_gradient: bool = False,
    ) -> list[Tensor] | None:
        """Return the tensors of `out`, checked against what the verb will return.

        Args:
            out: the user's.
            here: whether this rank gets a result; where it does not, there is nothing to check.
            needs_gradient: whether the result requires grad, which one written in place cannot.
        """
        if needs_gradient:
            raise self.error("out= was given, but the input requires grad; leave out= away, or detach() the input")
        if not here:
            return None
        try:
            targets, _ = packing.unwrap(out)
        except ArgumentError as error:
            raise self.error(f"out=: {error}") from None
        if len(targets) != len(self.tensors):
            raise self.error(f"out= holds {len(targets)} tensors, the input {len(self.tensors)}")
        for job in self._jobs:
            for place, shape in zip(job.places, job.shapes, strict=True):
                target, dtype, kind = targets[place], job.given.dtype, job.given.device.type
                if target.shape != shape or target.dtype != dtype or target.device.type != kind:
                    raise self.error(
                        f"out= is of shape {tuple(target.shape)}, {target.dtype} on {target.device.type}, but the "
                        f"result is of shape {tuple(shape)}, {dtype} on {kind}"
                    )
                if target.requires_grad:
                    raise self.error("out= requires grad and would be written in place; detach() it")
                if any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True)):
                    raise self.error("out= is expanded, several elements to one place; pass out.contiguous()")
        return targets


def _length(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.ndim else 1


def _elements(rows: Sequence[torch.Size], sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return how many elements of all tensors each part holds."""
    by_part = zip(*sizes, strict=True)
    return tuple(sum(size * row.numel() for size, row in zip(part, rows, strict=True)) for part in by_part)


def _unread(tensors: Sequence[Tensor], numel: int) -> Tensor:
    """Return what takes no memory but has the size that the node of a gradient needs."""
    needs_gradient = any(tensor.requires_grad for tensor in tensors)
    return tensors[0].new_zeros(1).requires_grad_(needs_gradient).expand(numel)


def _flat_target(job: _Job, targets: Sequence[Tensor], is_read: bool = True) -> Tensor | None:
    """Return the user's tensor as the flat result itself, where it can be; `is_read` tells whether the input is."""
    target = targets[job.places[0]]
    if len(job.places) > 1 or not job.in_order or not target.is_contiguous() or target.is_conj() or target.is_neg():
        return None
    if is_read and target.untyped_storage().data_ptr() == job.given.untyped_storage().data_ptr():
        is_itself = target.data_ptr() == job.given.data_ptr() and job.call.verb in ("all_reduce", "broadcast")
        if not is_itself:
            return None
    flat = target.view(-1)
    return flat if flat.stride(0) == 1 else None
