"""What the ranks of a world are where they are of several vendors: their domains, and what not all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from devices.domains.card import Card, named
from devices.domains.division import Division
from devices.domains.members import Domains


@final
class Vendors:
    """The ranks of a world that are not all of one backend, or of one whose hardware has no group of them all.

    Args:
        cards: what each rank has told, by rank of the world.
    """

    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = tuple(cards)
        self._division = Division(self._cards)

    def opens_natively(self, ranks: Sequence[int]) -> bool:
        """Return whether some ranks of the world are a group that their backend opens as it does in its own worlds."""
        return len({self._cards[rank].backend for rank in ranks}) == 1 and not self._division.of(ranks)[1]

    def domains(self, ranks: Sequence[int]) -> Domains:
        """Return the domains of a group: of the ranks of one backend, those that its own groups reach as one.

        Where its hardware has no group of those they are several: legal ones, the largest first.
        """
        part_of = {rank: at for at, part in enumerate(self._division.of(ranks)[0]) for rank in part}
        return Domains.of([(str(part_of[rank]), self._cards[rank].called) for rank in ranks])

    def divided(self, ranks: Sequence[int]) -> str:
        """Return, in words, why a backend's ranks in a group are several domains that need not be; "" if none are."""
        return "; ".join(self._division.of(ranks)[1])

    def on_cpu(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """Return those of some ranks whose own device is the CPU."""
        return tuple(rank for rank in ranks if self._cards[rank].type == "cpu")

    def lacks(self, ranks: Sequence[int]) -> dict[torch.dtype, str]:
        """Return, in words, who has not each dtype that some of these ranks have and others have not."""
        found: dict[torch.dtype, str] = {}
        for name, without in self._lacking(ranks).items():
            others = [rank for rank in ranks if rank not in without]
            if isinstance(dtype := getattr(torch, name, None), torch.dtype):
                found[dtype] = f"not there on {self.named(without)}, there on {self.named(others)}"
        return found

    def lacks_by_ranks(self, ranks: Sequence[int]) -> list[str]:
        """Return, in words, which dtypes some of these ranks have not and others have."""
        names: dict[tuple[int, ...], list[str]] = {}
        for name, without in self._lacking(ranks).items():
            names.setdefault(without, []).append(name)
        return [f"not on {self.named(without)}: {', '.join(some)}" for without, some in names.items()]

    def _lacking(self, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return who has not each dtype, by name, that some of these ranks have and others have not."""
        # A device that says nothing of dtypes has whatever there is.
        has = {rank: frozenset(self._cards[rank].dtypes) for rank in ranks if self._cards[rank].dtypes}
        # Bytes are what every transport carries.
        names = sorted(frozenset().union(*has.values()) - {"uint8"})
        found = {name: tuple(rank for rank in ranks if rank in has and name not in has[rank]) for name in names}
        return {name: without for name, without in found.items() if without}

    def common(self, ranks: Sequence[int], dtypes: frozenset[torch.dtype]) -> frozenset[torch.dtype]:
        """Return those of some dtypes that no rank lacks."""
        lacking = self.lacks(ranks)
        return frozenset(dtype for dtype in dtypes if dtype not in lacking)

    def named(self, ranks: Sequence[int]) -> str:
        """Return some ranks in words, by backend: "ranks 0, 1 (cpu) and 2, 3 (neuron)"."""
        return named(self._cards, ranks)
