"""What lets devices of several makers reach each other's memory, and what is assumed of it while nobody has it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import ClassVar, final

from devices._backend import Communicator, Device, Group
from devices.fabric.interface import Fabric

Assumed = Mapping[str, str]
"""By the name of each assumption that the catalogue's table has, the choice that is taken."""


@final
@dataclass(frozen=True, slots=True)
class Side:
    """The ranks of a group that are of one kind.

    Args:
        target: what they are, by its name in the catalogue.
        ranks: their places in the group, ascending.
    """

    target: str
    ranks: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Port:
    """Where a device is on a fabric.

    Args:
        target: what the device is, by its name in the catalogue.
        where: the same on all devices that the fabric may join, as an address of the switches that they hang on.
        assumed: what is assumed of the fabric there; the same on all of them.
    """

    target: str
    where: str
    assumed: Assumed = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class Shared:
    """Memory that all ranks of a group read and write: what the fabric offers, or what stands in for it.

    Args:
        fabric: that memory, seen from one rank.
        carry: returns a communicator over a fabric in front of it; whether large collectives are to run as schedules,
            in which all ranks work at once, is its second argument.
        by_reference: whether a note comes to its reader as the very object that it was; else as JSON.
    """

    fabric: Fabric
    carry: Callable[[Fabric, bool], Communicator]
    by_reference: bool = False


@final
@dataclass(frozen=True, slots=True)
class Predicted:
    """What one collective is predicted to take.

    Args:
        low: seconds, if all goes well.
        expected: seconds.
        high: seconds, if little does.
        sent: bytes that all ranks of the group send together, by the name of the link.
    """

    low: float
    expected: float
    high: float
    sent: Mapping[str, float] = field(hash=False)


class Interop(abc.ABC):
    """A fabric between devices of several makers; `Backend.interop` of one of their backends returns it.

    Attributes:
        name: what the fabric is called.
        domain: its domain in the catalogue, whose table of assumptions says what can be switched.
    """

    name: ClassVar[str]
    domain: ClassVar[str]

    def port(self, device: Device) -> Port | None:
        """Return where a device of this process, of whichever backend, is on the fabric; None if it is not on it.

        Every rank of a world of several backends asks it for its own device, of the fabric that its own backend's
        `interop` returns and of those of its peers' backends, where those are installed. Ranks of several backends are
        one domain where each of them says that it is on the fabric, at one place, and `domains` has them in one.
        """
        return None

    def memory(self, group: Group) -> Shared | str:
        """Return the memory that ranks of a group share, which are all in one domain; every one of them calls this.

        Returns:
            The memory; or, in words, why these ranks cannot reach each other's after all: they are then domains with
            a bridge between, and `devices.explain()` says why.
        """
        return f"{self.name} has no memory of its own to open"

    @abc.abstractmethod
    def covers(self, targets: AbstractSet[str]) -> bool:
        """Return whether devices of all these targets are on the fabric."""

    @abc.abstractmethod
    def domains(self, sides: Sequence[Side], assumed: Assumed) -> Sequence[Sequence[Side]]:
        """Return which sides of a group reach each other natively: one sequence for each domain, each rank in one.

        Raises:
            UnsupportedError: so many ranks are not in one domain.
        """

    @abc.abstractmethod
    def limits_of(self, target: str, assumed: Assumed) -> str:
        """Return the target of the catalogue whose software's limits ranks of `target` have."""

    @abc.abstractmethod
    def open(self, group: Group, sides: Sequence[Side], shared: Shared, assumed: Assumed) -> Communicator:
        """Return a communicator over `group`, whose ranks are all in one domain."""

    @abc.abstractmethod
    def bridge(self, assumed: Assumed) -> str:
        """Return what is between two domains, in words."""

    @abc.abstractmethod
    def compared(self, assumed: Assumed) -> Mapping[str, Assumed]:
        """Return what a report tells apart: by what each is called, what is assumed then."""

    @abc.abstractmethod
    def predicted(self, verb: str, size: int, root: int, sides: Sequence[Side], assumed: Assumed) -> Predicted:
        """Return what a verb is predicted to take.

        Args:
            verb: its name.
            size: bytes, as `devices.topology.predict` counts them.
            root: the source or the destination in the group, or the rank that sends; -1 where there is none.
            sides: the ranks of the group.
            assumed: what is assumed.
        """
