"""One domain's own collectives, as a composed group uses them; of a domain of one rank they are copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import final

import torch

from devices._backend import Asked, Communicator
from devices.algorithms.lowerings import own_verbs
from devices.fabric.host.communicator import SharedMemoryCommunicator

Tensor = torch.Tensor

Parts = Sequence[Sequence[Tensor]]
"""By place in the domain, tensors that make up that rank's part, one after the other; as long on every rank."""


@final
class Inside:
    """The domain that this rank is in. All tensors are flat and contiguous; each verb is done when it returns.

    The ranks' parts may be of any lengths. A host's memory takes them as they lie; for other domains' own verbs, which
    take no others, they are made equal: what that costs is memory's time, of which there is more than of the way
    across.

    Args:
        communicator: the domain's own; None where this rank is alone in it.
        place: this rank's place in the domain.
        size: the number of its ranks.
        host: carries all ranks of the group, where what carries the domain may not compare calls, and a barrier costs
            less on the host.
        compares_all: whether `agree` compares the calls of all ranks of the group, and not of the domain's alone.
    """

    def __init__(
        self,
        communicator: Communicator | None,
        place: int,
        size: int,
        host: Communicator | None = None,
        *,
        compares_all: bool = False,
    ) -> None:
        self.communicator = communicator
        self._memory = communicator if isinstance(communicator, SharedMemoryCommunicator) else None
        has_swap = communicator is not None and "all_to_all" in own_verbs(communicator) - set(communicator.even)
        self._swaps = communicator if has_swap else None
        self._host = communicator if host is None else host
        self.compares_all = compares_all
        self.place, self.size = place, size

    def reduce_scatter(self, parts: Parts, op: str) -> Tensor:
        """Return this rank's part of the reduction of all ranks' `parts`, in memory of its own."""
        if self.communicator is None:
            return torch.cat(list(parts[0]))
        lengths = _lengths(parts)
        longest, own = max(lengths), lengths[self.place]
        like = next(each for part in parts for each in part)
        if (rows := _joined(parts, lengths)) is None:
            if self._memory is not None:
                output = like.new_empty(own)
                self._memory.reduce_parts(output, parts, op)
                return output
            rows = like.new_zeros(self.size * longest)
            for part, row in zip(parts, rows.view(self.size, longest), strict=True):
                for each, place in _places(part, row):
                    place.copy_(each)
        output = like.new_empty(longest)
        self.communicator.reduce_scatter(output, rows, op).wait()
        return output[:own]

    def all_gather(self, parts: Parts, own: Tensor) -> None:
        """Fill `parts` with what the ranks have of their `own`; of any dtype, for they only move."""
        if self.communicator is None:
            _fill(parts[0], own)
            return
        lengths = _lengths(parts)
        if (whole := _joined(parts, lengths)) is not None:
            self.communicator.all_gather(_bytes(whole), _bytes(own)).wait()
            return
        if self._memory is not None:
            self._memory.gather_parts([[_bytes(each) for each in part] for part in parts], _bytes(own))
            return
        if own.numel() < (longest := max(lengths)):
            own = torch.cat([own, own.new_zeros(longest - own.numel())])
        rows = own.new_empty(self.size * longest)
        self.communicator.all_gather(_bytes(rows), _bytes(own)).wait()
        for part, row in zip(parts, rows.view(self.size, longest), strict=True):
            _fill(part, row)

    def all_to_all(self, input: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        """Return what all ranks have for this one, one after the other.

        Args:
            input: what this rank has for each, one after the other.
            counts: by place, how much that rank has for each; as long on every rank.
        """
        me = self.place
        came = [row[me] for row in counts]
        if self.communicator is None:
            return input
        output, width = input.new_empty(sum(came)), input.element_size()
        if self._swaps is not None:
            scaled = [[count * width for count in row] for row in (came, counts[me])]
            self._swaps.all_to_all(_bytes(output), _bytes(input), *scaled).wait()
            return output
        everything = [[input.new_empty(sum(row))] for row in counts]
        self.all_gather(everything, input)
        starts = [sum(row[:me]) for row in counts]
        return torch.cat([row[start:][:count] for [row], start, count in zip(everything, starts, came, strict=True)])

    def broadcast(self, tensor: Tensor, place: int) -> None:
        """Replace `tensor` by that of the rank at `place`."""
        if self.communicator is not None:
            self.communicator.broadcast(tensor.view(torch.uint8), place).wait()

    def barrier(self) -> None:
        """Return once all ranks of the domain have come."""
        if self._host is not None:
            self._host.barrier().wait()

    def agree(self, call: Asked) -> None:
        """Compare the call that the ranks of the domain make, where its communicator can."""
        if self._host is not None:
            self._host.expect(call)
            self._host.agree()


def cut(tensors: Sequence[Tensor], cuts: Sequence[int]) -> list[list[Tensor]]:
    """Return tensors that lie one after the other in parts, without copying them.

    Args:
        tensors: flat ones.
        cuts: where the parts begin, and where the last one ends.
    """
    places = list(accumulate((each.numel() for each in tensors), initial=0))
    return [
        [
            tensor[max(start - begin, 0) : stop - begin]
            for tensor, (begin, end) in zip(tensors, pairwise(places), strict=True)
            if max(start, begin) < min(stop, end)
        ]
        for start, stop in pairwise(cuts)
    ]


def compares(communicator: Communicator) -> bool:
    """Return whether a communicator compares the ranks' calls."""
    return type(communicator).expect is not Communicator.expect


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _lengths(parts: Parts) -> list[int]:
    return [sum(each.numel() for each in part) for part in parts]


def _joined(parts: Parts, lengths: Sequence[int]) -> Tensor | None:
    """Return the tensor that `parts` are, one after the other and equally long; None where they are not."""
    flat = [each for part in parts for each in part]
    if len(set(lengths)) > 1 or any(
        first.data_ptr() + first.nbytes != second.data_ptr() for first, second in pairwise(flat)
    ):
        return None
    # What ends where another storage begins is not of it.
    storage = flat[0].untyped_storage()
    if flat[0].data_ptr() + sum(each.nbytes for each in flat) > storage.data_ptr() + storage.nbytes():
        return None
    return flat[0].as_strided((sum(lengths),), (1,))


def _places(part: Sequence[Tensor], row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the tensors of a part, each with its place in a row that they lie in one after the other."""
    at = 0
    for each in part:
        yield each, row[at : at + each.numel()]
        at += each.numel()


def _fill(part: Sequence[Tensor], row: Tensor) -> None:
    for each, place in _places(part, row):
        each.copy_(place)
