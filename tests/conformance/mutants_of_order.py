"""Mutants that are wrong about what comes before what, in one group, between groups and between threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from good_backend import Arriving, ArrivingFromAny, Mail, MailBackend, Tensor
from mutant import caught_by
from posts import Hall

from devices import Group, Message

# What a verb returns.


@caught_by("life.late_peer")
class WaitReturnsWithoutWaiting(Arriving):
    def wait(self) -> None:
        if super().is_completed():
            super().wait()


@caught_by("order.completed")
class IsCompletedAtOnce(Arriving):
    def is_completed(self) -> bool:
        return True


@caught_by("order.completed", patience=1.5)
class IsNeverCompleted(Arriving):
    def is_completed(self) -> bool:
        return False


@caught_by("order.completed", patience=1.5)
class IsCompletedWaits(Arriving):
    def is_completed(self) -> bool:
        self.wait()
        return True


@caught_by("order.calls")
class OnlyTheLastOfManyWaitsCounts(Mail):
    # One buffer for all letters that are on their way: a verb that is started before the last one is waited for
    # gets the later one's letters.
    def call(self, verb: str, letters: Mapping[int, Tensor], sources: Sequence[int]) -> list[str]:
        names = super().call(verb, letters, sources)
        latest = self.__dict__.setdefault("latest", {})
        latest[verb] = names
        return names

    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        return super().await_letters(
            verb, self.__dict__.get("latest", {}).get(verb, names) if names else names, deadline
        )


class _Later(Arriving):
    """Has something to send, and does so when it is waited for."""

    send: Callable[[], None]

    def wait(self) -> None:
        with self.lock:
            send, self.send = self.send, lambda: None
        send()
        super().wait()


@caught_by("order.waits", patience=1.5)
class AsyncVerbsStartInWait(Mail):
    def call(self, verb: str, letters: Mapping[int, Tensor], sources: Sequence[int]) -> list[str]:
        number = next(self.calls)
        copies = {to: letter.detach().clone().view(torch.uint8) for to, letter in letters.items()}

        def send() -> None:
            for to, letter in copies.items():
                self.post.put(to, f"{self.rank} {verb} {number}", letter)

        self.unsent = send
        return [f"{source} {verb} {number}" for source in sources]

    def arriving(self, mail: Mail, verb: str, names: Sequence[str], *finish: Callable[..., object]) -> Arriving:  # type: ignore[override]
        later = _Later(mail, verb, names, *finish)
        later.send, self.unsent = self.__dict__.get("unsent", lambda: None), lambda: None
        return later


@caught_by("random.programs", patience=4.0)
class EachThirdVerbOfAGroupIsForgotten(Mail):
    def call(self, verb: str, letters: Mapping[int, Tensor], sources: Iterable[int]) -> list[str]:
        names = super().call(verb, letters, sources)
        self.__dict__["number"] = self.__dict__.get("number", 0) + 1
        return names

    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        letters = super().await_letters(verb, names, deadline)
        if self.__dict__.get("number", 0) % 3 == 2:
            for letter in letters:
                letter.zero_()
        return letters


class _LendingHall(Hall):
    """Gives the receiver the sender's own memory to read."""

    def put(self, to: int, name: str, letter: Tensor) -> None:
        with self._room.changed:
            self._room.letters[to, name] = letter
            self._room.changed.notify_all()


@caught_by("order.sent")
class SentMemoryIsReadLater(MailBackend):
    post = _LendingHall


@caught_by("order.inputs")
class ScatterTakesItsInputApart(Mail):
    def scatter(self, output: Tensor, input: Tensor | None, src: int) -> Arriving:
        arriving = super().scatter(output, input, src)
        if input is not None:
            input.zero_()
        return arriving


@caught_by("order.results")
class TheLastResultIsWrittenOnceMore(Mail):
    def all_gather(self, output: Tensor, input: Tensor) -> Arriving:
        arriving = super().all_gather(output, input)
        finish, before = arriving.finish, self.__dict__.get("before")

        def write_both(letters: list[Tensor]) -> None:
            finish(letters)
            if before is not None and before.numel() == output.numel():
                before.copy_(output)

        self.__dict__["before"] = output
        arriving.finish = write_both
        return arriving


@caught_by("order.many")
class SixtyFourVerbsAreUnderWayAtMost(Mail):
    def call(self, verb: str, letters: Mapping[int, Tensor], sources: Iterable[int]) -> list[str]:
        self.__dict__["under_way"] = self.__dict__.get("under_way", 0) + 1
        if self.__dict__["under_way"] > 64:
            raise RuntimeError(f"{self.group}: 64 verbs are under way already")
        return super().call(verb, letters, sources)

    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        self.__dict__["under_way"] = 0
        return super().await_letters(verb, names, deadline)


# Messages.


@caught_by("order.other_tags")
class TagsAreIgnored(Mail):
    def ticket(self, source: int, to: int, tag: int) -> str:
        return super().ticket(source, to, 0)


@caught_by("order.other_tags")
class TheTagsHighBitsAreIgnored(Mail):
    def ticket(self, source: int, to: int, tag: int) -> str:
        return super().ticket(source, to, tag & 0xFFFF)


@caught_by("order.one_tag")
class TheLatestMessageComesFirst(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        arriving = super().exchange(sends, recvs)
        arriving.mail = _Latest(self)
        return arriving


class _Latest:
    """Looks for the latest message of a tag."""

    def __init__(self, mail: Mail) -> None:
        self.mail = mail
        self.post, self.is_aborted, self.is_closed = mail.post, False, False

    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        found = []
        for name in names:
            source, tag, _ = name.split()
            number = self.mail.tickets[int(source), self.mail.rank, int(tag)]
            # It lets the sender come first, and takes what is there beyond what was asked for, if something is.
            time.sleep(0.02)
            later = [f"{source} {tag} {at}" for at in reversed(range(number + 8))]
            there = [each for each in later if self.post.has(each)]
            found += self.mail.await_letters(verb, there[:1] or [name], deadline)
        return found


@caught_by("order.both_send", patience=1.5)
class SendWaitsForItsReceiver(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        self.check("exchange")
        deadline = self.deadline()
        for message in sends:
            name = self.ticket(self.rank, message.peer, message.tag)
            self.post.put(message.peer, name, message.tensor)
            while (message.peer, name) in self.post._room.letters:  # type: ignore[attr-defined]
                self.rest("exchange", deadline)
        return self.into("exchange", {self.ticket(to.peer, self.rank, to.tag): to.tensor for to in recvs})


@caught_by("order.one_tag")
class EmptyMessagesAreNotSent(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        return super().exchange([message for message in sends if message.tensor.numel()], recvs)


@caught_by("order.one_tag")
class EmptyMessagesAreSkippedByTheReceiver(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        return super().exchange(sends, [message for message in recvs if message.tensor.numel()])


@caught_by("order.sent", patience=1.5)
class ExchangeIsOneOfTheVerbsThatAllCall(Mail):
    # A number that all verbs share, so that a message between two ranks puts the others out of step.
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        next(self.calls)
        return super().exchange(sends, recvs)


@caught_by("order.from_any")
class TheSenderOfAnyMessageIsTheFirstPeer(Mail):
    def recv_any(self, tensor: Tensor, tag: int) -> ArrivingFromAny:
        arriving = super().recv_any(tensor, tag)
        arriving.source = lambda: self.peers[0]
        return arriving


@caught_by("order.from_any")
class ReceivingFromAnyTakesAnyTag(Mail):
    def next_from_any(self, tag: int) -> dict[str, int]:
        known = {tag, *(tag for _, _, tag in self.tickets), *range(16)}
        return {
            name: peer
            for each in sorted(known, reverse=True)
            for name, peer in super(type(self), self).next_from_any(each).items()
        }


# Barriers and groups.


@caught_by("order.completed")
class BarrierDoesNotWait(Mail):
    def barrier(self) -> Arriving:
        return Arriving(self, "barrier", [])


@caught_by("order.completed")
class BarrierWaitsForRankZeroOnly(Mail):
    def barrier(self) -> Arriving:
        arriving = super().barrier()
        arriving.names = [name for name in arriving.names if name.startswith("0 ")]
        return arriving


_rooms_by_ranks: weakref.WeakValueDictionary[tuple[int, ...], object] = weakref.WeakValueDictionary()


class _SharedHall(Hall):
    """A hall that all groups of the same ranks share."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._room = _rooms_by_ranks.setdefault(group.ranks, self._room)  # type: ignore[assignment]


@caught_by("order.groups_interleaved", patience=1.5)
class GroupsOfTheSameRanksShareTheirBoxes(MailBackend):
    post = _SharedHall


# Threads.


@caught_by("order.beside", patience=1.5)
class ExchangeIsForOneThreadOnly(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        self.sends = sends
        time.sleep(0.002)  # another thread has its turn
        sends = self.sends
        time.sleep(0.002)
        return super().exchange(sends, recvs)


@caught_by("order.receives_first", patience=1.5)
class ReceivingKeepsOtherThreadsFromSending(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        lock = self.__dict__.setdefault("one", threading.Lock())
        deadline = self.deadline()
        while not lock.acquire(timeout=0.01):
            self.rest("exchange", deadline)
        try:
            arriving = super().exchange(sends, recvs)
            arriving.wait()
        finally:
            lock.release()
        return arriving
