"""Where the chunks of a schedule lie in one rank's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, final

import torch

from devices.algorithms.schedule import Schedule


class Chunks(Protocol):
    """One rank's chunks as tensors, by number."""

    def __getitem__(self, number: int) -> torch.Tensor: ...


@final
class Layout:
    """One rank's chunks as tensors.

    Args:
        schedule: names the chunks.
        sizes: the number of elements of each part; scratch is made by it.
        like: a tensor of the dtype and device of all parts.
        input: the flat tensors of the parts that this rank has in its input, by number.
        output: those of its output.
    """

    def __init__(
        self,
        schedule: Schedule,
        sizes: Sequence[int],
        like: torch.Tensor,
        input: Mapping[int, torch.Tensor],
        output: Mapping[int, torch.Tensor],
    ) -> None:
        self._schedule = schedule
        self._sizes = sizes
        self.like = like
        self._scratch: dict[int, torch.Tensor] = {}
        self._buffers: dict[str, Mapping[int, torch.Tensor]] = {
            "input": input, "output": output, "scratch": self._scratch
        }  # fmt: skip
        self._chunks: dict[int, torch.Tensor] = {}

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return chunk `number`."""
        found = self._chunks.get(number)
        if found is None:
            found = self._chunks[number] = self._slice(number)
        return found

    def _slice(self, number: int) -> torch.Tensor:
        chunk = self._schedule.chunks[number]
        if chunk.buffer == "scratch" and chunk.part not in self._scratch:
            self._scratch[chunk.part] = self.like.new_empty(self._sizes[chunk.part])
        part = self._buffers[chunk.buffer][chunk.part]
        start, end, total = self._schedule.extents[number]
        if end - start == total:
            return part
        size = part.numel()
        return part[size * start // total : size * end // total]
