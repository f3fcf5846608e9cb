"""`Group`: the ranks that a communicator is opened over, and how they tell each other what they must to connect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from devices._watched import watched
from devices.errors import CollectiveError, CollectiveTimeoutError

if TYPE_CHECKING:
    from devices._device import Device
    from devices._store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that a communicator is opened over, seen from one of them.

    Args:
        ranks: the members' ranks in the world, in the group's order.
        rank: this member's place in `ranks`.
        device: the device that this rank's tensors live on.
        store: shared by the members; carries JSON.
        timeout: how long a verb may wait for its peers.
        name: the same on every member, unique in the world.
    """

    ranks: tuple[int, ...]
    rank: int
    device: Device
    store: Store
    timeout: timedelta
    name: str

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.ranks)

    def hear(self, key: str, rank: int) -> Any:
        """Return what a member says by setting `key` in the store, having waited for it up to the group's timeout.

        Args:
            key: the key.
            rank: who sets it.

        Raises:
            CollectiveError: it says nothing, and a member has died.
            CollectiveTimeoutError: it says nothing in time.
        """
        seconds = self.timeout.total_seconds()
        try:
            has_come = self.store.comes(key, seconds)
        except CollectiveError as error:
            raise CollectiveError(f"{self}: {error}") from error
        if not has_come:
            raise CollectiveTimeoutError(
                f"{self}: the group was not opened within {seconds:g} s: rank {self.ranks[rank]} did not come; every "
                "rank makes all groups, its own and the others', in one order"
            )
        return self.store.get(key)

    def share(self, key: str, value: Any) -> list[Any]:
        """Tell the members `value`, which is JSON, and return what each of them told under that key, by rank.

        Raises:
            CollectiveError: one told nothing, and a member has died.
            CollectiveTimeoutError: one told nothing in time.
        """
        self.store.set(f"{key}/{self.rank}", value)
        return [self.hear(f"{key}/{rank}", rank) for rank in range(self.size)]

    def watched(self, call: Callable[[], T], what: str, give_up: Callable[[T], object] | None = None) -> T:
        """Return what `call` returns, in which the members wait for each other by a vendor's own means.

        Every member calls this, and it returns once the calls of all have returned. The call runs on a thread, while
        this one watches the others: one that dies, as far as that can be seen, or whose call raises, is an error on all
        of them soon, by whatever they are waiting. Where the store gives no connection of its own for that, deaths
        alone are seen, and other failures by the timeout. The thread of a call that waits on is left behind.

        Args:
            call: what is called; what it raises is raised.
            what: what that is, in words, the same on all members, and another for each call of a group: for errors, and
                the keys in the store.
            give_up: called once with what `call` returned where that is an error here all the same, for it may be
                another member's: before the error is raised, or on the thread, where `call` returns after it.

        Raises:
            CollectiveError: a member has died, or its call has failed, or what the group is a part of did not open.
            CollectiveTimeoutError: the calls have not returned within the group's timeout.
        """
        return watched(self, call, what, give_up)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} in group {self.name!r}"
