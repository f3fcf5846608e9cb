"""What the ranks of a world are where they are of several vendors: their domains, and what not all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from devices._backend import Capabilities
from devices.domains.members import Domains
from devices.errors import UnsupportedError


@final
@dataclass(frozen=True, slots=True)
class Card:
    """What a rank tells the others of itself.

    Args:
        backend: the backend that it is of.
        device: its device, as `str(device)` prints it.
        type: torch's type of that.
        host: what its host is called.
        reach: what `Backend.reach` says of the device.
        dtypes: the names of the dtypes that the device has; none for whatever there is.
        sizes: the sizes that its groups may have; None for any.
        multiple: every multiple of this is legal too.
    """

    backend: str
    device: str
    type: str
    host: str
    reach: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...] | None
    multiple: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Card:
        sizes = said["sizes"]
        return Card(**{**said, "dtypes": tuple(said["dtypes"]), "sizes": None if sizes is None else tuple(sizes)})

    @property
    def called(self) -> str:
        """What the domain of this rank is called."""
        return f"{self.backend} on {self.host}" if self.reach else self.backend


@final
class Vendors:
    """The ranks of a world that are not all of one backend.

    Args:
        cards: what each rank has told, by rank of the world.
    """

    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = tuple(cards)

    def are_of_one(self, ranks: Sequence[int]) -> bool:
        """Return whether some ranks of the world are of one backend."""
        return len({self._cards[rank].backend for rank in ranks}) == 1

    def domains(self, ranks: Sequence[int]) -> Domains:
        """Return the domains of a group: of the ranks of one backend, those that its own groups reach as one."""
        cards = [self._cards[rank] for rank in ranks]
        return Domains.of([(f"{card.backend} {card.reach}", card.called) for card in cards])

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

    def check_sizes(self, group: object, ranks: Sequence[int]) -> None:
        """Raise, on every rank of the group alike, unless each domain of it may have as many ranks as it has.

        Raises:
            UnsupportedError: one may not.
        """
        for place in self.domains(ranks).members:
            members = [ranks[rank] for rank in place]
            card = self._cards[members[0]]
            sizes = None if card.sizes is None else frozenset(card.sizes)
            legal = Capabilities(frozenset(), group_sizes=sizes, group_size_multiple=card.multiple)
            if len(members) == 1 or legal.allows_group_of(len(members)):
                continue
            also = f" or a multiple of {card.multiple}" if card.multiple else ""
            others = [rank for rank in ranks if rank not in members]
            raise UnsupportedError(
                f"{group}: {self.named(members)} would be a domain of {len(members)} beside {self.named(others)}, and "
                f"backend {card.backend!r} has no groups of {len(members)}; legal sizes are {sorted(card.sizes or ())}"
                f"{also}"
            )

    def named(self, ranks: Sequence[int]) -> str:
        """Return some ranks in words, by backend: "ranks 0, 1 (cpu) and 2, 3 (neuron)"."""
        by_backend: dict[str, list[int]] = {}
        for rank in ranks:
            by_backend.setdefault(self._cards[rank].backend, []).append(rank)
        parts = [f"{', '.join(map(str, some))} ({backend})" for backend, some in by_backend.items()]
        return f"rank{'s' if len(ranks) > 1 else ''} {' and '.join(parts)}"
