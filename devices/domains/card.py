"""What each rank of a world of several vendors tells the others of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from devices._backend import Capabilities


@final
@dataclass(frozen=True, slots=True)
class Card:
    """What a rank tells the others of itself.

    Args:
        backend: the backend that it is of.
        device: its device, as `str(device)` prints it.
        index: torch's index of that.
        type: torch's type of that.
        host: what its host is called.
        reach: what `Backend.reach` says of the device.
        dtypes: the names of the dtypes that the device has; none for whatever there is.
        sizes: the sizes that its groups may have; None for any.
        multiple: every multiple of this is legal too.
        symmetric: whether a group over several hosts must have the same devices of each.
        bound: what `Backend.bound` says of the device.
        targets: by the name of each fabric that the device is on, what it is there.
    """

    backend: str
    device: str
    index: int
    type: str
    host: str
    reach: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...] | None
    multiple: int | None
    symmetric: bool = False
    bound: tuple[str, int] | None = None
    targets: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Card:
        sizes, bound = said["sizes"], said["bound"]
        return Card(
            **{
                **said,
                "dtypes": tuple(said["dtypes"]),
                "sizes": None if sizes is None else tuple(sizes),
                "bound": None if bound is None else tuple(bound),
            }
        )

    @property
    def called(self) -> str:
        """What the domain of this rank is called."""
        return f"{self.backend} on {self.host}" if self.reach else self.backend

    @property
    def legal_sizes(self) -> str:
        """The sizes that its groups may have, in words."""
        also = f" or a multiple of {self.multiple}" if self.multiple else ""
        return f"{sorted(self.sizes or ())}{also}"

    def allows_group_of(self, size: int) -> bool:
        """Return whether a native group of this rank and others like it may have so many ranks."""
        sizes = None if self.sizes is None else frozenset(self.sizes)
        can = Capabilities(frozenset(), group_sizes=sizes, group_size_multiple=self.multiple)
        return size == 1 or can.allows_group_of(size)


def named(cards: Sequence[Card], ranks: Sequence[int]) -> str:
    """Return some ranks of a world in words, by backend: "ranks 0, 1 (cpu) and 2, 3 (neuron)"."""
    by_backend: dict[str, list[int]] = {}
    for rank in ranks:
        by_backend.setdefault(cards[rank].backend, []).append(rank)
    parts = [f"{', '.join(map(str, some))} ({backend})" for backend, some in by_backend.items()]
    return f"rank{'s' if len(ranks) > 1 else ''} {' and '.join(parts)}"
