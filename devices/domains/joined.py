"""Ranks of several backends whose devices reach each other's memory by a fabric: one domain, which that opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

from devices._backend import Capabilities, Communicator, Group
from devices._interop import Assumed, Interop, Port, Shared
from devices.algorithms.verbs import Verbs
from devices.domains.predicted import by_fabric
from devices.domains.vendors import Vendors
from devices.errors import PluginError
from devices.fabric.communicator import REDUCTIONS
from devices.roster.plugin import shown


@final
@dataclass(frozen=True, slots=True)
class Fabrics:
    """The fabrics that this rank's device is on.

    Args:
        interops: by name.
        ports: where the device is on each.
        releases: which distribution brings each, and its version.
    """

    interops: Mapping[str, Interop] = field(default_factory=dict)
    ports: Mapping[str, Port] = field(default_factory=dict)
    releases: Mapping[str, str] = field(default_factory=dict)

    def predicted(self, vendors: Vendors, ranks: Sequence[int]) -> Callable[[], str] | None:
        """Return what says, in words, what a fabric predicts of some ranks that are all on it; None if none is."""
        for name, interop in self.interops.items():
            if vendors.are_on(name, ranks):
                return partial(by_fabric, interop, vendors.sides(name, ranks), self.ports[name].assumed)
        return None


@final
class Joining:
    """The domain of several backends that this rank is in, of one group, while that opens.

    Args:
        group: the ranks of that domain.
        vendors: what the ranks of the world are.
        fabrics: those that this rank is on.
        name: the fabric that joins them.
    """

    def __init__(self, group: Group, vendors: Vendors, fabrics: Fabrics, name: str) -> None:
        self._group, self._vendors = group, vendors
        self._name = name
        self._interop = fabrics.interops[name]
        self._assumed: Assumed = fabrics.ports[name].assumed
        self._shared: Shared | None = None

    def reach(self) -> str:
        """Come to share the domain's memory; return why that cannot be, "" if it is done."""
        found: object = self._interop.memory(self._group)
        if isinstance(found, str):
            return found or f"{self._name} does not say why"
        if not isinstance(found, Shared):
            raise PluginError(f"{self._group}: fabric {self._name!r} returned {shown(found)}, which is no memory")
        self._shared = found
        return ""

    def predicted(self) -> str:
        """Return how long verbs take, as the fabric predicts it, in words."""
        return by_fabric(self._interop, self._vendors.sides(self._name, self._group.ranks), self._assumed)

    def leave(self) -> None:
        """Give back the memory, of which others say that they do not reach it."""
        if self._shared is not None:
            self._shared.fabric.leave()
            self._shared = None

    def open(self, group: Group) -> Verbs:
        """Open the domain over its memory, for a group of those ranks; what the fabric lacks is composed."""
        communicator = self.communicator()
        can = Capabilities(frozenset(), communicator.reductions or {})
        return Verbs(communicator, group, can, self._vendors.lacks(group.ranks))

    def communicator(self) -> Communicator:
        """Open the domain over its memory, which is the communicator's from then on."""
        assert self._shared is not None, "its memory was reached"
        group, ranks = self._group, self._group.ranks
        found: object = self._interop.open(group, self._vendors.sides(self._name, ranks), self._shared, self._assumed)
        if not isinstance(found, Communicator):
            raise PluginError(
                f"{group}: fabric {self._name!r} opened the group and returned {shown(found)}, which is no "
                "devices.Communicator"
            )
        self._shared = None
        if found.reductions is None:
            found.reductions = {op: self._vendors.common(ranks, dtypes) for op, dtypes in REDUCTIONS.items()}
        return found
