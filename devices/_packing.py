"""Many tensors as one flat one, and back: torch's own reshape, cat and split, so gradients pass through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import torch

from devices.errors import ArgumentError

Tensor = torch.Tensor
Tensors = Union[Tensor, Sequence[Tensor], Mapping[str, Tensor]]
"""What a verb takes: a tensor, or a list, a tuple or a dict of them, done in one call."""

Rebuild = Callable[[Sequence[Any]], Any]


def unwrap(value: Tensors, verb: str) -> tuple[list[Tensor], Rebuild]:
    """Return the tensors of `value`, and what puts as many results into the same shape of container."""
    if isinstance(value, Tensor):
        return [value], lambda results: results[0]
    if isinstance(value, Mapping):
        keys = list(value)
        return _checked(list(value.values()), verb), lambda results: dict(zip(keys, results, strict=True))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _checked(list(value), verb), tuple if isinstance(value, tuple) else list
    raise ArgumentError(f"{verb} takes a tensor, or a list or dict of tensors, got {type(value).__name__}")


def _checked(tensors: list[Any], verb: str) -> list[Tensor]:
    for place, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{verb}: item {place} of the list is no tensor but {type(tensor).__name__}")
    return tensors


def by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of `tensors` in lists of one dtype each."""
    found: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault(tensor.dtype, []).append(place)
    return list(found.values())


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements of `tensors`, one tensor after another."""
    if len(tensors) == 1:
        return tensors[0].reshape(-1)
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unpack(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return tensors of `shapes` out of the `flat` one that `pack` made."""
    if len(shapes) == 1:
        return [flat.view(shapes[0])]
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def pack_parts(tensors: Sequence[Tensor], dim: int, sizes: Sequence[int]) -> Tensor:
    """Return all elements of `tensors`, first every tensor's part for rank 0, then for rank 1, and so on.

    Args:
        tensors: what is split along `dim`.
        dim: the dim that is split.
        sizes: the size of each rank's part along `dim`.
    """
    fronts = [_front(tensor, dim) for tensor in tensors]
    if len(fronts) == 1:
        return fronts[0].reshape(-1)
    by_tensor = [front.split(list(sizes)) for front in fronts]
    return torch.cat([part.reshape(-1) for parts in zip(*by_tensor, strict=True) for part in parts])


def unpack_parts(flat: Tensor, rows: Sequence[torch.Size], dim: int, sizes: Sequence[int]) -> list[Tensor]:
    """Return the tensors whose parts lie rank by rank in `flat`, joined along `dim`.

    Args:
        flat: as `pack_parts` orders it.
        rows: each tensor's shape without `dim`.
        dim: the dim that is joined.
        sizes: the size of each rank's part along `dim`.
    """
    if len(rows) == 1:
        return [_back(flat.view(sum(sizes), *rows[0]), dim)]
    parts = flat.split([size * row.numel() for size in sizes for row in rows])
    return [
        _back(torch.cat([parts[rank * len(rows) + place].view(size, *row) for rank, size in enumerate(sizes)]), dim)
        for place, row in enumerate(rows)
    ]


def row_of(tensor: Tensor, dim: int) -> torch.Size:
    """Return the tensor's shape without `dim`; that of a scalar, which counts as one element, is empty."""
    return torch.Size(size for place, size in enumerate(tensor.shape) if place != dim)


def _front(tensor: Tensor, dim: int) -> Tensor:
    if tensor.ndim == 0:
        return tensor.reshape(1)
    return tensor.movedim(dim, 0) if dim else tensor


def _back(front: Tensor, dim: int) -> Tensor:
    return front.movedim(0, dim).contiguous() if dim else front
