"""Many tensors as one flat one, and back: torch's own reshape, cat and slices, so gradients pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from devices.errors import ArgumentError

Tensor = torch.Tensor
Tensors = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""What a verb takes: a tensor, or a list, a tuple or a dict of them, done in one call."""

Rebuild = Callable[[Sequence[Any]], Any]


def unwrap(value: Tensors) -> tuple[list[Tensor], Rebuild]:
    """Return the tensors of `value`, and what puts as many results into the same kind of container.

    A dict's tensors come in the order of its keys' names, so that ranks may have filled theirs in any order.
    """
    if isinstance(value, Tensor):
        return [value], lambda results: results[0]
    if isinstance(value, Mapping):
        given, keys = list(value), sorted(value, key=str)
        tensors = _checked([value[key] for key in keys])

        def rebuild(results: Sequence[Any]) -> dict[str, Any]:
            by_key = dict(zip(keys, results, strict=True))
            return {key: by_key[key] for key in given}

        return tensors, rebuild
    if isinstance(value, (list, tuple)):
        return _checked(list(value)), tuple if isinstance(value, tuple) else list
    raise ArgumentError(f"takes a tensor, or a list, tuple or dict of tensors, got {type(value).__name__}")


def _checked(tensors: list[Any]) -> list[Tensor]:
    for place, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"item {place} is not a tensor but of type {type(tensor).__name__}")
    return tensors


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements of `tensors`, one tensor after another."""
    if len(tensors) == 1:
        return tensors[0].reshape(-1)
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unpack(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return tensors of `shapes` out of the `flat` one that `pack` made."""
    if len(shapes) == 1:
        return [flat.view(shapes[0])]
    pieces = _slices(flat, [shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def pack_parts(tensors: Sequence[Tensor], dims: Sequence[int], sizes: Sequence[Sequence[int]]) -> Tensor:
    """Return all elements of `tensors`, first every tensor's part for rank 0, then for rank 1, and so on.

    Args:
        tensors: what is split.
        dims: the dim along which each is split.
        sizes: for each tensor, the sizes of its parts along that dim.
    """
    fronts = [_front(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
    if len(fronts) == 1:
        return fronts[0].reshape(-1)
    by_tensor = [front.split(list(parts)) for front, parts in zip(fronts, sizes, strict=True)]
    return torch.cat([part.reshape(-1) for parts in zip(*by_tensor, strict=True) for part in parts])


def unpack_parts(
    flat: Tensor, rows: Sequence[torch.Size], dims: Sequence[int], sizes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return the tensors whose parts lie rank by rank in `flat`, each joined along its dim.

    Args:
        flat: as `pack_parts` orders it.
        rows: each tensor's shape without its dim.
        dims: the dim along which each is joined.
        sizes: for each tensor, the sizes of its parts along that dim.
    """
    if len(rows) == 1:
        return [_back(flat.view(sum(sizes[0]), *rows[0]), dims[0])]
    by_rank = list(zip(*sizes, strict=True))
    pieces = iter(_slices(flat, [size * row.numel() for part in by_rank for size, row in zip(part, rows, strict=True)]))
    parts = [[next(pieces).view(size, *row) for size, row in zip(part, rows, strict=True)] for part in by_rank]
    return [
        _back(own[0] if len(own) == 1 else torch.cat(own), dim)
        for own, dim in zip(zip(*parts, strict=True), dims, strict=True)
    ]


def row_of(tensor: Tensor, dim: int) -> torch.Size:
    """Return the tensor's shape without `dim`; that of a scalar, which counts as one element, is empty."""
    return torch.Size([size for place, size in enumerate(tensor.shape) if place != dim])


def _slices(flat: Tensor, counts: Iterable[int]) -> list[Tensor]:
    # Unlike the outputs of split, slices may be written to in place where a gradient is needed.
    pieces, start = [], 0
    for count in counts:
        pieces.append(flat[start : start + count])
        start += count
    return pieces


def _front(tensor: Tensor, dim: int) -> Tensor:
    if tensor.ndim == 0:
        return tensor.reshape(1)
    return tensor.movedim(dim, 0) if dim else tensor


def _back(front: Tensor, dim: int) -> Tensor:
    return front.movedim(0, dim).contiguous() if dim else front
