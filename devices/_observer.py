"""What an observer of collectives is, and what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from devices._backend import Group

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True, slots=True)
class Called:
    """A call that is about to be made.

    Args:
        verb: its name.
        group: the group, seen from the rank that calls.
        tensor: what the rank sends, or receives where it sends nothing; None for a barrier. To look at, not to change.
        op: the reduce op, "" where there is none.
        is_even: whether all ranks' parts are of one size.
        is_ours: whether the program called a verb of `devices`, which composes what the hardware lacks; if not, it
            called torch's own.
        is_async: whether it is a collective that the program goes on beside.
        peer: the rank in the group that the call is about: a root, or the other side of a message; None for neither.
    """

    verb: str
    group: Group
    tensor: torch.Tensor | None
    op: str
    is_even: bool
    is_ours: bool
    is_async: bool
    peer: int | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes `tensor` has."""
        return 0 if self.tensor is None else self.tensor.nbytes


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """A call that is over.

    Args:
        call: the call, the same object that `Observer.called` was given.
        error: what it raised; None if it is done.
        seconds: from the call to its end, for an asynchronous one to where the program learnt of the end.
    """

    call: Called
    error: BaseException | None
    seconds: float

    @property
    def outcome(self) -> str:
        """Either "done" or "failed"."""
        return "done" if self.error is None else "failed"


class Observer:
    """Is told of groups and of the calls of verbs. Override what you want to hear of; nothing else costs anything.

    Each method is called on the thread of the rank that makes the call, and with ranks or calls on several threads on
    several at once. What `opening` or `called` raises refuses the call, before anything is sent, and the program gets
    it; so is a world refused by `needs`. An asynchronous call that nobody waits for ends unheard.

    Attributes:
        is_innermost_only: of several observers of one class that has this, only that which came last is told.
    """

    is_innermost_only: ClassVar[bool] = False

    def needs(self, dtypes: Sequence[str]) -> None:
        """Hear that a world is about to be opened whose program needs dtypes of these names, "float64" one of them."""

    def opening(self, group: Group, *, is_world: bool) -> None:
        """Hear that a group is about to be opened."""

    def closed(self, group: Group) -> None:
        """Hear that a group is closed."""

    def called(self, call: Called) -> None:
        """Hear of a call that is about to be made."""

    def ended(self, ended: Ended) -> None:
        """Hear how a call that `called` has let pass came to its end."""

    def rank(self, rank: int) -> AbstractContextManager[object]:
        """Return what the function of a thread rank is run in."""
        return contextlib.nullcontext()
