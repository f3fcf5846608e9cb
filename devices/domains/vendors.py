"""What the ranks of a world are where they are of several vendors: their domains, and what not all of them have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from devices._interop import Side
from devices.algorithms.arithmetic import MEANINGFUL
from devices.domains.card import Card, named
from devices.domains.division import Division
from devices.domains.members import Domains

KNOWN = frozenset(
    str(dtype).removeprefix("torch.")
    for dtype in (*{dtype for _, dtype in MEANINGFUL}, torch.float8_e4m3fn, torch.float8_e5m2)
) - {"uint8"}
"""What a device that says nothing of dtypes may have, but bytes, which every transport carries."""


@final
@dataclass(frozen=True, slots=True)
class Island:
    """Ranks of the world that are at one place of a fabric.

    Args:
        fabric: what it is called.
        domains: which of them reach each other's memory by it.
        bridge: what the fabric says is between those domains, in words.
    """

    fabric: str
    domains: tuple[tuple[int, ...], ...]
    bridge: str

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Island:
        return Island(said["fabric"], tuple(map(tuple, said["domains"])), said["bridge"])


@final
@dataclass(frozen=True, slots=True)
class Join:
    """Ranks of several backends in a group that a fabric makes one domain.

    Args:
        fabric: what it is called.
        members: the ranks of the group.
        key: tells this domain from all others.
    """

    fabric: str
    members: tuple[int, ...]
    key: str


@final
class Vendors:
    """The ranks of a world that are not all of one backend, or of one whose hardware has no group of them all.

    Args:
        cards: what each rank has told, by rank of the world.
        islands: which of them fabrics join.
    """

    def __init__(self, cards: Sequence[Card], islands: Sequence[Island] = ()) -> None:
        self._cards = tuple(cards)
        self._islands = tuple(islands)
        self._division = self._divide(())
        self._is_open = False

    def open(self, ranks: Sequence[int], apart: Collection[str]) -> None:
        """Hear that a group opens, the world before all others: groups are divided within the domains of the world.

        Args:
            ranks: of the group.
            apart: the keys of those that the fabric did not join after all.
        """
        if not self._is_open:
            assert len(ranks) == len(self._cards), "the world opens first"
            self._is_open, self._division = True, self._divide(apart)

    def _divide(self, apart: Collection[str]) -> Division:
        """Return the domains of the world, those that a fabric joins and the rest each divided by themselves."""
        world = range(len(self._cards))
        rest = self._unjoined(world, apart)
        joined = [rank for rank in world if rank not in rest]
        return Division(self._cards, [ranks for ranks in (rest, joined) if ranks])

    def opens_natively(self, ranks: Sequence[int]) -> bool:
        """Return whether some ranks of the world are a group that their backend opens as it does in its own worlds."""
        return len({self._cards[rank].backend for rank in ranks}) == 1 and not self._division.of(ranks)[1]

    def domains(self, ranks: Sequence[int], apart: Collection[str] = ()) -> Domains:
        """Return the domains of a group: of the ranks of one backend, those that its own groups reach as one.

        Where its hardware has no group of those they are several: legal ones, the largest first. Ranks that a fabric
        joins are one domain, of whichever backends they are; how many there may be is the fabric's to say.

        Args:
            ranks: of the world.
            apart: the keys of those that the fabric did not join after all.
        """
        said: dict[int, tuple[str, str]] = {}
        for join in self._joins(ranks, apart):
            some = [ranks[place] for place in join.members]
            kinds = dict.fromkeys(self._cards[rank].backend for rank in some)
            said |= dict.fromkeys(some, (join.key, f"{' and '.join(kinds)} on {join.fabric}"))
        for at, part in enumerate(self._division.of(self._unjoined(ranks, apart))[0]):
            said |= {rank: (str(at), self._cards[rank].called) for rank in part}
        return Domains.of([said[rank] for rank in ranks])

    def divided(self, ranks: Sequence[int], apart: Collection[str] = ()) -> str:
        """Return, in words, why a backend's ranks in a group are several domains that need not be; "" if none are."""
        return "; ".join(self._division.of(self._unjoined(ranks, apart))[1])

    def _joins(self, ranks: Sequence[int], apart: Collection[str]) -> list[Join]:
        return [join for join in self.joins(ranks) if join.key not in apart]

    def _unjoined(self, ranks: Sequence[int], apart: Collection[str]) -> list[int]:
        """Return those of some ranks that no fabric joins."""
        joined = {place for join in self._joins(ranks, apart) for place in join.members}
        return [rank for place, rank in enumerate(ranks) if place not in joined]

    def joins(self, ranks: Sequence[int]) -> list[Join]:
        """Return which ranks of a group, of several backends, a fabric makes one domain."""
        found: list[Join] = []
        taken: set[int] = set()
        for number, island in enumerate(self._islands):
            for at, domain in enumerate(island.domains):
                members = [place for place, rank in enumerate(ranks) if rank in domain and place not in taken]
                if len({self._cards[ranks[place]].backend for place in members}) > 1:
                    taken.update(members)
                    found.append(Join(island.fabric, tuple(members), f"fabric {number} {at}"))
        return found

    def are_on(self, fabric: str, ranks: Sequence[int]) -> bool:
        """Return whether some ranks are all at one place of a fabric."""
        return any(
            island.fabric == fabric and all(any(rank in domain for domain in island.domains) for rank in ranks)
            for island in self._islands
        )

    def sides(self, fabric: str, ranks: Sequence[int]) -> list[Side]:
        """Return the kinds of some ranks that are on a fabric, by their places."""
        places: dict[str, list[int]] = {}
        for place, rank in enumerate(ranks):
            places.setdefault(self._cards[rank].targets[fabric], []).append(place)
        return [Side(target, tuple(some)) for target, some in places.items()]

    def between(self, ranks: Sequence[int]) -> list[str]:
        """Return, in words, what is to be said of fabrics that do not join ranks of different backends in a group."""
        said = []
        for island in self._islands:
            parts = [[rank for rank in ranks if rank in domain] for domain in island.domains]
            if len(parts := [part for part in parts if part]) > 1:
                shown = " and ".join(map(self.named, parts))
                said.append(
                    f"by {island.fabric} {shown} are domains of their own, with {island.bridge} between, for "
                    "which host memory serves here"
                )
        for fabric in dict.fromkeys(island.fabric for island in self._islands):
            places = [
                self.named(some)
                for island in self._islands
                if island.fabric == fabric
                and (some := [rank for rank in ranks if any(rank in domain for domain in island.domains)])
            ]
            if len(places) > 1:
                said.append(f"{' and '.join(places)} at different places of {fabric}")
        for fabric in sorted({name for rank in ranks for name in self._cards[rank].targets}):
            on = [rank for rank in ranks if fabric in self._cards[rank].targets]
            if off := [rank for rank in ranks if rank not in on]:
                said.append(f"{self.named(on)} on {fabric}, and not {self.named(off)}")
        return said

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
        known = frozenset().union(*has.values())
        if len(has) < len(ranks):
            known |= KNOWN
        # Bytes are what every transport carries.
        names = sorted(known - {"uint8"})
        found = {name: tuple(rank for rank in ranks if rank in has and name not in has[rank]) for name in names}
        return {name: without for name, without in found.items() if without}

    def common(self, ranks: Sequence[int], dtypes: frozenset[torch.dtype]) -> frozenset[torch.dtype]:
        """Return those of some dtypes that no rank lacks."""
        lacking = self.lacks(ranks)
        return frozenset(dtype for dtype in dtypes if dtype not in lacking)

    def named(self, ranks: Sequence[int]) -> str:
        """Return some ranks in words, by backend: "ranks 0, 1 (cpu) and 2, 3 (neuron)"."""
        return named(self._cards, ranks)
