"""The way between domains: messages from rank to rank, and the first words of a call, by which domains compare it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

import torch

from devices._backend import Communicator, Group, Message, Pending
from devices.algorithms.executor import COLLECTIVE_TAG
from devices.algorithms.started import go_on_beside, wait_however_long
from devices.domains.members import Domains
from devices.errors import CollectiveError, CollectiveTimeoutError, MismatchError
from devices.fabric.host.communicator import SharedMemoryCommunicator
from devices.fabric.host.notes import mark_from_json, mark_to_json
from devices.fabric.mark import Mark, difference

Tensor = torch.Tensor

_WORDS = 1024
"""The bytes of what a domain says of its call."""


@final
class Bridge:
    """Carries what passes between the domains of a group, for one of its ranks.

    Args:
        communicator: one over all ranks of the group, whose `exchange` reaches any of them.
        group: the members.
        domains: who is where.
        inside: this rank's domain; where it shares memory, messages to its ranks go by that.
        reason_of: returns what a rank of the group said of why it ended.
    """

    def __init__(
        self,
        communicator: Communicator,
        group: Group,
        domains: Domains,
        inside: Communicator | None,
        reason_of: Callable[[int], str],
    ) -> None:
        self.communicator = communicator
        self._reason_of = reason_of
        self._group = group
        self._domains = domains
        self._mine = domains.of_rank(group.rank)
        self._leads = domains.members[self._mine][0] == group.rank
        self._others = [ranks[0] for at, ranks in enumerate(domains.members) if at != self._mine]
        self.shared = inside if isinstance(inside, SharedMemoryCommunicator) else None
        near = domains.members[self._mine] if self.shared is not None else ()
        self.near = {rank: place for place, rank in enumerate(near)}
        """The ranks that messages go to by memory, and their places there."""

    def start(
        self, sends: Sequence[tuple[int, Tensor]], recvs: Sequence[tuple[int, Tensor]], tag: int = COLLECTIVE_TAG
    ) -> Crossing:
        """Start messages to and from ranks of the group; those of two ranks and a tag are matched in their order."""
        return self.exchange(*([_message(*each, tag) for each in messages] for messages in (sends, recvs)))

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Crossing:
        """Start messages, each by its own tag."""
        out, into = ([each for each in messages if each.tensor.numel()] for messages in (sends, recvs))
        exchange, near = self.communicator.exchange, self.near
        far = [(recv.peer, exchange([], [recv])) for recv in into if recv.peer not in near]
        far += [(send.peer, exchange([send], [])) for send in out if send.peer not in near]
        by_memory = None
        if self.shared is not None:
            here = [
                [replace(each, peer=near[each.peer]) for each in messages if each.peer in near]
                for messages in (out, into)
            ]
            by_memory = self.shared.exchange(*here) if any(here) else None
        return Crossing(far, by_memory, self._lost)

    def tell(self, peer: int, words: Tensor, tag: int) -> Crossing:
        """Start a message to a rank of the group by what is between the domains, wherever that rank is."""
        return Crossing([(peer, self.communicator.exchange([Message(words, peer, tag)], []))], None, self._lost)

    def hear(self, peer: int, words: Tensor, tag: int) -> Crossing:
        """Start to receive what a rank `tell`s."""
        return Crossing([(peer, self.communicator.exchange([], [Message(words, peer, tag)]))], None, self._lost)

    def _name(self, peer: int) -> str:
        """Return what a rank of the group is called."""
        return f"rank {self._group.ranks[peer]} of {self._domains.names[self._domains.of_rank(peer)]}"

    def _lost(self, peer: int, error: RuntimeError) -> CollectiveError:
        text = str(error).partition("\n")[0]
        if "timed out" in text.lower():
            return CollectiveTimeoutError(f"{self._name(peer)} did not come within the timeout: {text}")
        if reason := self._reason_of(peer):
            return CollectiveError(f"{self._name(peer)} has ended, for it raised {reason}")
        return CollectiveError(f"{self._name(peer)} does not answer any more: {text}")

    def agree(self, mark: Mark) -> None:
        """Compare the call that this rank's domain has agreed on with that of the others.

        Raises:
            MismatchError: another domain made another; on the first rank of each domain.
        """
        if not self._leads:
            return
        words = torch.frombuffer(bytearray(_words_of(mark)), dtype=torch.uint8)
        said = {peer: torch.empty_like(words) for peer in self._others}
        self.start([(peer, words) for peer in self._others], list(said.items())).wait()
        marks = {mark.rank: mark} | _marks(said)
        if found := difference(marks):
            raise MismatchError(f"rank {mark.rank}: {mark}: {found}")

    def meet(self) -> None:
        """Wait until the first rank of each domain has come."""
        if self._leads:
            word = torch.zeros(1, dtype=torch.uint8)
            came = [(peer, torch.empty_like(word)) for peer in self._others]
            self.start([(peer, word) for peer in self._others], came).wait()


@final
class Crossing:
    """Messages on their way.

    Args:
        under_way: those between domains, each with the rank that it goes to or comes from.
        by_memory: those inside this rank's domain, if any.
        lost: returns what is to be raised for a rank and its error.
    """

    def __init__(
        self,
        under_way: Sequence[tuple[int, Pending]],
        by_memory: Pending | None,
        lost: Callable[[int, RuntimeError], CollectiveError],
    ) -> None:
        self._under_way = under_way
        self._by_memory = by_memory
        self._lost = lost

    def wait(self) -> None:
        self._wait(lambda pending: pending.wait())

    def wait_however_long(self) -> None:
        """Wait while the program does other things."""
        self._wait(wait_however_long)

    def _wait(self, wait: Callable[[Pending], object]) -> None:
        if self._under_way:
            # Who waits for those of this rank may be who those that this rank waits for wait for.
            self.go_on_beside()
        for peer, pending in self._under_way:
            try:
                wait(pending)
            except CollectiveError:
                raise
            except RuntimeError as error:
                raise self._lost(peer, error) from error

        if self._by_memory is not None:
            wait(self._by_memory)

    def is_completed(self) -> bool:
        here = self._by_memory is None or self._by_memory.is_completed()
        return here and all(pending.is_completed() for _, pending in self._under_way)

    def go_on_beside(self) -> None:
        """Let what goes by memory go on without anyone waiting; the rest does so by itself."""
        if self._by_memory is not None:
            go_on_beside(self._by_memory)


def _message(peer: int, tensor: Tensor, tag: int) -> Message:
    return Message(tensor.view(torch.uint8), peer, tag)


def _words_of(mark: Mark) -> bytes:
    """Return what is told of a call; of a line that is too long its end."""
    while len(words := json.dumps(mark_to_json(mark)).encode()) > _WORDS:
        mark = replace(mark, line=mark.line[len(mark.line) // 2 :], group=mark.group[: len(mark.group) // 2])
    return words.ljust(_WORDS)


def _marks(said: Mapping[int, Tensor]) -> dict[int, Mark]:
    marks = {}
    for words in said.values():
        mark = mark_from_json(json.loads(words.numpy().tobytes()))
        marks[mark.rank] = mark
    return marks
