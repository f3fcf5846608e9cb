"""What a verb over flat tensors requires of its group and arguments: an error, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import final

import torch

from devices._backend import Group
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.errors import ArgumentError, UnsupportedError, WorldError

Tensor = torch.Tensor

_NONE: Mapping[torch.dtype, str] = MappingProxyType({})


@final
class Requirements:
    """What a group, seen from one rank, requires. All methods but `open` raise `ArgumentError` for what is wrong.

    Args:
        group: the members.
        dtypes: what its tensors may be of; none for whatever there is.
        lacks: of dtypes that some of its ranks have and others have not, who has not, in words.

    Attributes:
        closed: why the group is closed; empty while it is open.
    """

    def __init__(
        self, group: Group, dtypes: AbstractSet[torch.dtype] = frozenset(), lacks: Mapping[torch.dtype, str] = _NONE
    ) -> None:
        self._group = group
        self._size, self._rank = group.size, group.rank
        # Bytes are what every transport carries, and within one rank nothing is carried at all.
        self._dtypes = frozenset({*dtypes, torch.uint8} if dtypes and group.size > 1 else ())
        self._lacks = lacks
        self.closed = ""

    def open(self, verb: str, dtype: torch.dtype | None = None) -> None:
        """Raise unless the group is open, and its device has tensors of `dtype`.

        Raises:
            WorldError: it is closed.
            UnsupportedError: the backend does not declare that dtype.
        """
        if self.closed:
            raise WorldError(f"{self._group}: {verb} was called, but {self.closed}")
        if dtype is not None and dtype in self._lacks:
            raise UnsupportedError(
                f"{self._group}: {verb} of {dtype}: {self._lacks[dtype]}; nothing is converted, so pass a "
                "dtype that all of them have"
            )
        if self._dtypes and dtype is not None and dtype not in self._dtypes:
            raise UnsupportedError(
                f"{self._group}: {verb} of {dtype}: backend {self._group.device.backend!r} does not declare it; its "
                f"dtypes are {', '.join(sorted(str(each).removeprefix('torch.') for each in self._dtypes))}"
            )

    def no_messages(self, verb: str, communicator: object) -> UnsupportedError:
        """Return the error of a verb between two ranks where the communicator has none."""
        return UnsupportedError(
            f"{self._group}: {type(communicator).__name__} has no point-to-point messages, so {verb} cannot be done "
            "and nothing composes it; use permute or broadcast, which all ranks call"
        )

    def no_source(self, communicator: object) -> UnsupportedError:
        """Return the error of a receive from whoever sends where the communicator has none."""
        kind = type(communicator).__name__
        return UnsupportedError(f"{self._group}: {kind} cannot receive from any source; name one by src=")

    def wrong(self, verb: str, what: str) -> ArgumentError:
        """Return the error that says where it is and what."""
        return ArgumentError(f"{self._group}: {verb}: {what}")

    def rank(self, verb: str, name: str, rank: int) -> None:
        if not 0 <= rank < self._size:
            raise self.wrong(verb, f"{name} must be a rank of the group, 0 to {self._size - 1}, got {rank}")

    def tag(self, verb: str, tag: int) -> None:
        if not 0 <= tag < COLLECTIVE_TAG:
            raise self.wrong(verb, f"a tag is at least 0 and below 2**30, got {tag}")

    def peer(self, verb: str, peer: int, tag: int) -> None:
        self.rank(verb, "the peer", peer)
        if peer == self._rank:
            raise self.wrong(verb, "the peer is the rank itself; copy the tensor instead")
        self.tag(verb, tag)

    def size(self, verb: str, name: str, tensor: Tensor, size: int) -> None:
        if tensor.numel() != size:
            raise self.wrong(verb, f"{name} must have {size} elements, got {tensor.numel()}")

    def same_dtype(self, verb: str, output: Tensor, input: Tensor) -> None:
        if output.dtype != input.dtype:
            raise self.wrong(verb, f"output is of {output.dtype}, input of {input.dtype}; they must be of one dtype")

    def at_root(self, verb: str, name: str, tensor: Tensor | None, root: int, size: int) -> None:
        """Require a tensor of `size` elements on the root, and None elsewhere."""
        if self._rank == root:
            if tensor is None:
                raise self.wrong(verb, f"this rank is the root and needs an {name}, got None")
            self.size(verb, name, tensor, size)
        elif tensor is not None:
            raise self.wrong(verb, f"{name} is for the root, rank {root}, alone; pass None on this rank")

    def permutation(self, verb: str, pairs: Sequence[tuple[int, int]]) -> None:
        """Require pairs of ranks of which each sends at most once and receives at most once."""
        for end, ranks in (("sends", [src for src, _ in pairs]), ("receives", [dst for _, dst in pairs])):
            for rank in ranks:
                self.rank(verb, "each rank of pairs", rank)
            if len(set(ranks)) != len(ranks):
                raise self.wrong(verb, f"a rank {end} more than once in {list(pairs)}")

    def sizes(self, verb: str, counts: Sequence[int] | None, even: int) -> tuple[Sequence[int], bool]:
        """Return the number of elements of each rank's part, and whether all are equal."""
        if counts is None:
            return (even,) * self._size, True
        if len(counts) != self._size:
            raise self.wrong(verb, f"there must be {self._size} counts, one for each rank, got {len(counts)}")
        if min(counts) < 0:
            raise self.wrong(verb, f"counts must not be negative, got {list(counts)}")
        return counts, min(counts) == max(counts)
