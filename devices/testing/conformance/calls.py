"""A call of a verb as plain data, and what each rank gives to it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

Parts = tuple[tuple[int, ...], ...]
"""Groups that have no rank in common, of the world's ranks: each rank calls over the one that it is in."""

REDUCING = ("all_reduce", "reduce", "reduce_scatter")
JOINING = ("all_gather", "gather")
SPLITTING = ("reduce_scatter", "scatter", "all_to_all")
WHOLE = ("all_reduce", "reduce", "broadcast", "permute", "send")
VERBS = (
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "all_gather",
    "gather",
    "scatter",
    "all_to_all",
    "broadcast",
    "permute",
    "send",
    "barrier",
)
"""All verbs; "send" is one rank's send and another's recv."""

LAYOUTS = ("contiguous", "transposed", "gaps", "offset", "expanded", "conjugated")
"""How a tensor lies in memory: see `laid_out`."""


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One verb that all ranks of a group call.

    Args:
        verb: of `VERBS`.
        group: which of the program's groups; 0 is the world.
        op: for verbs that reduce.
        dtype: "float32", say.
        shape: of one part: what is joined, what each rank gets of what is split, or the whole of the other verbs.
        data: "numbers", "bits" or "specials": see `make`.
        seed: of the data.
        layout: of the tensor that is given.
        dim: for verbs that join or split.
        sizes: the sizes of the parts along `dim`, taken in turn as often as there are ranks; all are equal without.
        root: the source or the destination, for verbs that have one; taken modulo the group's size.
        shift: for permute and send: each message goes that many ranks further.
        out: how the tensor lies that `out=` is given, "input" if it is the input itself; "" gives none.
        wait: how many calls later the result is waited for; at once, by the synchronous verb, if 0.
    """

    verb: str
    group: int = 0
    op: str = "sum"
    dtype: str = "float32"
    shape: tuple[int, ...] = (2,)
    data: str = "numbers"
    seed: int = 0
    layout: str = "contiguous"
    dim: int = 0
    sizes: tuple[int, ...] = ()
    root: int = 0
    shift: int = 1
    out: str = ""
    wait: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def part_sizes(self, size: int) -> list[int]:
        """Return the size of each rank's part along `dim`, in a group of `size`."""
        own = [self.shape[self.dim]] if self.shape else [1]
        pattern = self.sizes or own
        return [pattern[rank % len(pattern)] for rank in range(size)]

    def swapped_sizes(self, size: int) -> list[list[int]]:
        """Return, for all_to_all, the size of what each rank sends to each."""
        if not self.sizes:
            return [self.part_sizes(size)] * size
        return [[self.sizes[(source + 2 * to) % len(self.sizes)] for to in range(size)] for source in range(size)]

    def shape_of(self, rank: int, size: int) -> tuple[int, ...]:
        """Return the shape of what `rank` of a group of `size` gives."""
        if self.verb in WHOLE or not self.shape:
            return self.shape
        if self.verb in JOINING:
            length = self.part_sizes(size)[rank]
        elif self.verb == "all_to_all":
            length = sum(self.swapped_sizes(size)[rank])
        else:
            length = sum(self.part_sizes(size))
        at = self.dim % len(self.shape)
        return (*self.shape[:at], length, *self.shape[at + 1 :])

    def pairs(self, size: int) -> list[tuple[int, int]]:
        """Return where messages of a permute go: all one way round, the last rank's left out if there is another."""
        everyone = [(rank, (rank + self.shift) % size) for rank in range(size)]
        return everyone[:-1] if size > 1 and self.root % 2 else everyone

    def ends(self, size: int) -> tuple[int, int]:
        """Return which rank sends and which one receives."""
        source = self.root % size
        return source, (source + 1 + (self.shift - 1) % max(size - 1, 1)) % size

    def made(self, rank: int, size: int, world_rank: int) -> torch.Tensor:
        """Return what `rank` of a group of `size` gives, on the CPU and not yet laid out; not to be changed."""
        return _made(world_rank, self.seed, self.shape_of(rank, size), self.dtype, self.data)


def part_of(parts: Parts, rank: int) -> tuple[int, ...] | None:
    """Return which of `parts` a rank is in, if it is in one."""
    return next((part for part in parts if rank in part), None)


@functools.lru_cache(maxsize=512)
def _made(rank: int, seed: int, shape: tuple[int, ...], dtype: str, data: str) -> torch.Tensor:
    return make(rank, seed, shape, getattr(torch, dtype), data)


# These two stand in the programs that show a failure, so they use nothing but torch and math.


def make(rank: int, seed: int, shape: Sequence[int], dtype: torch.dtype, data: str) -> torch.Tensor:
    """Return what a rank gives: "bits" are any, "specials" any integers, or floats with NaN, infinities and -0.0."""
    chance, count = torch.Generator().manual_seed(1000 * seed + rank), math.prod(shape)
    is_real, is_whole = dtype.is_floating_point, not dtype.is_floating_point and not dtype.is_complex
    if dtype == torch.bool:
        x = torch.randint(2, (count,), generator=chance) == 1
    elif data == "bits" or (dtype.itemsize == 1 and is_real) or (data == "specials" and is_whole):
        x = torch.randint(256, (count * dtype.itemsize,), generator=chance, dtype=torch.uint8).view(dtype)
    elif is_whole:
        x = torch.randint(10, (count,), generator=chance).to(dtype)
    else:
        x = torch.rand((count, 2), generator=chance, dtype=torch.float64) * 4 - 2
        x = (torch.view_as_complex(x) if dtype.is_complex else x[:, 0]).to(dtype)
    if data != "numbers" and is_real and dtype.itemsize > 1:
        for place, special in enumerate((float("nan"), float("inf"), -float("inf"), -0.0)):
            x[(place + rank) % 5 :: 7] = special
    return x.reshape(tuple(shape))


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same values, but for "expanded" and "conjugated", lying otherwise in memory."""
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "offset":
        return torch.cat([x.flatten(), x.flatten()])[x.numel() :].view(x.shape)
    if layout == "expanded" and x.ndim and x.shape[0]:
        return x[:1].expand(x.shape)
    if layout == "conjugated" and x.is_complex():
        return x.conj()
    return x
