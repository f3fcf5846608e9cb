"""`Fabric`: what memory that several ranks reach directly has to offer, and what a rank may wait for on it.

The address space that thread ranks share is one; so are memory that processes of a host map, and memory of
accelerators that their links let a peer read. Who implements this interface gets every verb: `communicator.py`
composes them from it.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Raised:
    """Holds when each of `peers` has raised its counter `lane` to at least `value`."""

    peers: Sequence[int]
    lane: int
    value: int


@dataclass(frozen=True, slots=True)
class Read:
    """Holds when all readers of this rank's own export `name` are through with it."""

    name: Hashable


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds when one of `conditions` does."""

    conditions: Sequence[Raised]


Condition = Raised | Read | AnyOf


class Fabric(abc.ABC):
    """A group's shared memory, seen from one of its ranks. Ranks are those of the group.

    Each rank has counters, its *lanes*, numbered from 0, which start at 0, which it alone raises and which all
    ranks see. Whoever sees a lane raised also sees all that its owner wrote or exported before it raised it: on
    hardware that does not promise that by itself, `signal` and `wait` hold the fences.

    Attributes:
        rank: this rank.
        size: the number of ranks.
    """

    rank: int
    size: int

    @property
    def base(self) -> Fabric:
        """The fabric that conditions about this one are about: itself, unless it stands in front of another."""
        return self

    @abc.abstractmethod
    def export(
        self, name: Hashable, tensor: torch.Tensor | None, note: object, readers: int, *, is_part: bool = False
    ) -> None:
        """Let peers read `tensor` under `name`, until `readers` of them have closed it.

        Until then it must not be changed. `tensor` is flat and contiguous, None where only the note matters;
        `note` is what a reader gets beside it: a `Mark`, or the tag of a message. `is_part` says that the rest of the
        memory that the tensor is a part of may change.
        """

    @abc.abstractmethod
    def open(self, peer: int, name: Hashable) -> tuple[torch.Tensor | None, object]:
        """Return what `peer`, which may be this rank, exported under `name`, and its note.

        It was exported before: a lane that was raised after it tells.

        Raises:
            LookupError: it was not.
        """

    @abc.abstractmethod
    def close(self, peer: int, name: Hashable) -> None:
        """Say that this reader is through; the tensor that `open` returned is not used any more."""

    @abc.abstractmethod
    def signal(self, lane: int, value: int, note: object = None) -> None:
        """Raise this rank's `lane` to `value`; `note`, if there is one, says what for."""

    @abc.abstractmethod
    def noted(self, peer: int, lane: int, value: int) -> object:
        """Return the note with which a peer raised its `lane` to `value`; None if it had none, or it is long ago."""

    @abc.abstractmethod
    def holds(self, condition: Condition) -> bool:
        """Return at once whether `condition` holds."""

    @abc.abstractmethod
    def wait(self, conditions: Sequence[tuple[Fabric, Condition]], about: object) -> None:
        """Block until one of `conditions` holds, each about a fabric of this kind.

        The first is what this wait is for, and about this fabric; the others may be looked at meanwhile. `str(about)`
        says what is waited for.

        Raises:
            DevicesError: it will not: the group was aborted, a peer died, the time is up.
        """

    @abc.abstractmethod
    def pause(self, about: object, conditions: Sequence[tuple[Fabric, Condition]] = ()) -> None:
        """Let others go on for a moment: it is called between two looks at something that is not there yet.

        Raises:
            DevicesError: the first of `conditions`, which are as those of `wait`, will not hold.
        """

    @abc.abstractmethod
    def give_up(self, error: BaseException) -> None:
        """Hear that a verb of this rank has failed for `error`: peers that wait for it here raise, as far as they can.

        It may be one that `wait` has raised.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Make all who wait here raise; callable from any thread, more than once."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Give back what this rank holds here; it calls nothing more, its peers may. Callable more than once."""
