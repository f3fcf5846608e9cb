"""Every verb from `all_gather` and `all_reduce`, for hardware without point-to-point. All wait until it is done.

Each rank gets everything and picks its own: simple, right, and more bytes than needed. What only moves data
comes as bytes; what reduces comes in a dtype that the communicator reduces, or that `arithmetic.combine` takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devices.algorithms.arithmetic import Carrier, carriers, combine, local_carrier
from devices.algorithms.transport import Transport

Tensor = torch.Tensor

_PIECE = 64 << 20
"""Bytes to gather at once where the data of all ranks is more than the result."""


def native_carrier(on: Transport, op: str, dtype: torch.dtype) -> Carrier | None:
    """Return the form in which the communicator's own reductions take an op and dtype, or None if in none."""
    return next((found for found in carriers(op, dtype) if on.reduces(found.op, found.dtype)), None)


def carrier(on: Transport, op: str, dtype: torch.dtype) -> Carrier:
    """Return the form in which tensors are reduced here."""
    return native_carrier(on, op, dtype) or local_carrier(op, dtype)


def all_reduce(on: Transport, tensor: Tensor, op: str) -> None:
    if on.reduces(op, tensor.dtype):
        on.communicator.all_reduce(tensor, op).wait()
        return
    for piece in _pieces(on, tensor):
        first, *others = _gathered(on, piece.view(torch.uint8))
        piece.view(torch.uint8).copy_(first)
        for other in others:
            combine(op, piece, other.view(piece.dtype), piece)


def all_gather(on: Transport, output: Tensor, input: Tensor, counts: Sequence[int]) -> None:
    for part, received in zip(output.split(list(counts)), _padded(on, input, max(counts)), strict=True):
        part.copy_(received[: part.numel()])


def reduce_scatter(on: Transport, output: Tensor, input: Tensor, op: str, counts: Sequence[int]) -> None:
    reduced = input.clone()
    all_reduce(on, reduced, op)
    output.copy_(reduced.split(list(counts))[on.rank])


def all_to_all(
    on: Transport, output: Tensor, input: Tensor, output_counts: Sequence[int], input_counts: Sequence[int]
) -> None:
    # Where my part begins in another's input is known to that one alone.
    mine = torch.tensor(list(input_counts), dtype=torch.int64, device=input.device)
    counts = [row.view(torch.int64).tolist() for row in _gathered(on, mine.view(torch.uint8))]
    longest = max(map(sum, counts))
    if not longest:
        return
    rows = _padded(on, input, longest)
    for part, row, sent in zip(output.split(list(output_counts)), rows, counts, strict=True):
        start = sum(sent[: on.rank])
        part.copy_(row[start : start + part.numel()])


def broadcast(on: Transport, tensor: Tensor, src: int) -> None:
    for piece in _pieces(on, tensor):
        piece.copy_(_gathered(on, piece)[src])


def reduce(on: Transport, tensor: Tensor, dst: int, op: str) -> None:
    reduced = tensor if on.rank == dst else tensor.clone()
    all_reduce(on, reduced, op)


def gather(on: Transport, output: Tensor | None, input: Tensor, _: int, counts: Sequence[int]) -> None:
    if output is None:
        output = input.new_empty(sum(counts))
    all_gather(on, output, input, counts)


def scatter(on: Transport, output: Tensor, input: Tensor | None, src: int, counts: Sequence[int]) -> None:
    everything = output.new_zeros(sum(counts)) if input is None else input.clone()
    broadcast(on, everything, src)
    output.copy_(everything.split(list(counts))[on.rank])


def permute(on: Transport, output: Tensor | None, input: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    rows = _gathered(on, input)
    for source, target in pairs:
        if target == on.rank and output is not None:
            output.copy_(rows[source])


def barrier(on: Transport) -> None:
    everyone = torch.stack(_gathered(on, torch.zeros(1, dtype=torch.uint8, device=on.device)))
    if on.device.type != "cpu":
        # The device was told to wait; a barrier holds the host.
        everyone.cpu()


def _gathered(on: Transport, input: Tensor) -> list[Tensor]:
    """Return every rank's `input`, bytes, the same number on all."""
    output = input.new_empty(on.size * input.numel())
    if input.numel():
        on.communicator.all_gather(output, input).wait()
    return list(output.view(on.size, -1)) if input.numel() else [input] * on.size


def _padded(on: Transport, input: Tensor, longest: int) -> list[Tensor]:
    """Return every rank's `input`, bytes, each with something behind that makes it as long as the longest."""
    if input.numel() < longest:
        padded = input.new_zeros(longest)
        padded[: input.numel()] = input
        input = padded
    return _gathered(on, input)


def _pieces(on: Transport, tensor: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = tensor.split(max(1, _PIECE // (on.size * tensor.element_size())))
    return pieces
