"""A group as what carries it tells of it, and what is left of it after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devices._backend import Capabilities, Communicator, Group, NotHereError
from devices._store import Store
from devices.errors import UnsupportedError

Survivors = Callable[[], tuple[tuple[int, ...], Store]]
"""Returns the ranks of a group that are still there after an error, and a store that they share."""


class Carried:
    """A group and the communicator that carries it, if it has more than one rank.

    Args:
        communicator: the group's transport; None will do for a group of one.
        group: the members.
        capabilities: what the device and the communicator can do.
        survivors: finds the ranks that are left after an error; None where the communicator does, if anything.
    """

    def __init__(
        self,
        communicator: Communicator | None,
        group: Group,
        capabilities: Capabilities,
        survivors: Survivors | None = None,
    ) -> None:
        self.group = group
        self.capabilities = capabilities
        self._communicator = communicator
        self._survivors = survivors

    @property
    def note(self) -> str:
        """What carries the group, in words."""
        return "" if self._communicator is None else self._communicator.note

    def are_by(self, kind: type[Communicator]) -> bool:
        """Return whether a communicator of that class carries them."""
        return isinstance(self._communicator, kind)

    @property
    def predicted(self) -> str:
        """How long its verbs are predicted to take, in words, as far as the communicator says it."""
        said = "" if self._communicator is None else self._communicator.predicted
        return said if isinstance(said, str) else said()

    @property
    def native(self) -> Any:
        """Torch's own backend that carries the group; None where there is none."""
        return None if self._communicator is None else self._communicator.native

    def survivors(self) -> tuple[tuple[int, ...], Store]:
        """Return the ranks of the group that are still there after an error, and a store that they share."""
        if self._communicator is None:
            raise UnsupportedError(f"{self.group}: a group of one has nobody to recover with; open another world")
        try:
            return (self._survivors or self._communicator.survivors)()
        except NotHereError as error:
            raise UnsupportedError(
                f"{self.group}: after an error the ranks that are left cannot be found by what carries this group"
                f"{f', {self.note}' if self.note else ''}; shared memory of processes and gloo can. Start all ranks "
                "again, those that train from a checkpoint (torchrun --max-restarts does)"
            ) from error
