"""Mutants that are wrong about errors, about the end of a group, or that keep what they should give back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from good_backend import Arriving, Mail, MailBackend, Tensor
from mutant import caught_by
from posts import Hall

from devices import Communicator, Group, Message
from devices.errors import UnsupportedError

# Errors.


@caught_by("life.*")
class ErrorsAreSwallowed(Arriving):
    def wait(self) -> None:
        try:
            super().wait()
        except Exception:
            self.error = None


@caught_by("life.*")
class ErrorsAreRaisedOnceOnly(Arriving):
    def wait(self) -> None:
        try:
            super().wait()
        except Exception:
            self.error, self.is_done = None, True
            raise


@caught_by("life.*")
class TheTimeoutIsIgnored(Mail):
    def deadline(self) -> float:
        return time.monotonic() + 3600


@caught_by("life.*")
class TheTimeoutIsAnHourWhateverWasAsked(MailBackend):
    def open(self, group: Group) -> Communicator:
        longer = Group(group.ranks, group.rank, group.device, group.store, timedelta(hours=1), group.name)
        return super().open(longer)


@caught_by("life.*")
class ALatePeerIsNoTimeoutError(Mail):
    def rest(self, verb: str, awaited: str, deadline: float) -> None:
        try:
            super().rest(verb, awaited, deadline)
        except TimeoutError:
            raise RuntimeError("something went wrong") from None


@caught_by("life.*")
class ALatePeerEndsTheProgram(Mail):
    def rest(self, verb: str, awaited: str, deadline: float) -> None:
        try:
            super().rest(verb, awaited, deadline)
        except TimeoutError:
            raise SystemExit(1) from None


@caught_by("life.*")
class MessagesOfAnotherSizeAreTakenAsTheyAre(Mail):
    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Arriving:
        arriving = super().exchange(sends, recvs)

        def copy(letters: list[Tensor]) -> None:
            for message, letter in zip(recvs, letters, strict=True):
                both = min(letter.numel(), message.tensor.numel())
                message.tensor[:both] = letter[:both]

        arriving.finish = copy
        return arriving


# The end of a group.


@caught_by("life.*")
class AbortDoesNothing(Mail):
    def abort(self) -> None:
        pass


@caught_by("life.*")
class AbortIsForTheNextVerb(Mail):
    # What is waiting already goes on waiting.
    def abort(self) -> None:
        self.is_broken = True

    def check(self, verb: str) -> None:
        if self.__dict__.get("is_broken"):
            raise RuntimeError("aborted")
        super().check(verb)


@caught_by("life.*")
class AbortTwiceIsAnError(Mail):
    def abort(self) -> None:
        if self.is_aborted:
            raise RuntimeError("aborted already")
        super().abort()


@caught_by("life.*")
class AbortWaitsForTheVerb(Mail):
    def await_letters(self, verb: str, names: Sequence[str], deadline: float) -> list[Tensor]:
        with self.lock:
            return super().await_letters(verb, names, deadline)

    def abort(self) -> None:
        # No longer than any test would look on.
        with_lock = self.lock.acquire(timeout=20)
        super().abort()
        if with_lock:
            self.lock.release()


@caught_by("life.*")
class CloseTwiceIsAnError(Mail):
    def close(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        super().close()


class _ForgetfulHall(Hall):
    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._sent: list[tuple[int, str]] = []

    def put(self, to: int, name: str, letter: Tensor) -> None:
        super().put(to, name, letter)
        self._sent.append((to, name))

    def close(self) -> None:
        for sent in self._sent:
            self._room.letters.pop(sent, None)
        super().close()


@caught_by("life.*")
class CloseLosesWhatWasSent(MailBackend):
    post = _ForgetfulHall


@caught_by("life.*")
class CloseWaitsForAllRanks(Mail):
    def close(self) -> None:
        if not self.is_closed and not self.is_aborted:
            self.barrier().wait()
        super().close()


@caught_by("life.*")
class VerbsGoOnAfterClose(Mail):
    def check(self, verb: str) -> None:
        pass

    def close(self) -> None:
        pass


@caught_by("life.*")
class CloseRaises(Mail):
    def close(self) -> None:
        super().close()
        raise RuntimeError("the post is on strike")


@caught_by("life.*")
class AGroupCanBeOpenedOnce(MailBackend):
    # A second group of the same ranks is refused as long as the process lives.
    opened: set[tuple[tuple[int, ...], int]] = set()  # noqa: RUF012

    def open(self, group: Group) -> Communicator:
        key = group.ranks, group.rank
        if key in self.opened and len(group.ranks) == 2:
            raise RuntimeError(f"{group}: these ranks have a group already")
        self.opened.add(key)
        return super().open(group)


# What is kept.


class _Keeping(MailBackend):
    """Keeps something for each group that it opens."""

    kept: list[object]

    def open(self, group: Group) -> Communicator:
        self.keep(group)
        return super().open(group)

    def keep(self, group: Group) -> None:
        raise NotImplementedError


@caught_by("life.*leak*")
class EachGroupKeepsAFileOpen(_Keeping):
    def keep(self, group: Group) -> None:
        os.open(os.devnull, os.O_RDONLY)


@caught_by("life.*leak*")
class EachGroupKeepsAThread(_Keeping):
    def keep(self, group: Group) -> None:
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()


_kept: list[bytes] = []


@caught_by("life.*leak*")
class EachGroupKeepsMemory(_Keeping):
    def keep(self, group: Group) -> None:
        _kept.append(b"x" * (64 << 10))


@caught_by("life.*leak*")
class ThereAreNumbersForSoManyGroups(_Keeping):
    count_opened = 0

    def keep(self, group: Group) -> None:
        type(self).count_opened += 1
        if self.count_opened > 400:
            raise UnsupportedError(f"{group}: there are no numbers left")


# What only processes have.


@caught_by("life.*dead*", ranks="processes")
class ADeadPeerIsAwaitedForEver(Mail):
    def deadline(self) -> float:
        return time.monotonic() + 3600


@caught_by("life.*fork*", ranks="processes")
class AForkedProcessHangs(Mail):
    def check(self, verb: str) -> None:
        while os.getpid() != self.process:
            time.sleep(0.1)
        super().check(verb)


@caught_by("life.*fork*", ranks="processes")
class AForkedProcessCleansUpForItsParent(Mail):
    def close(self) -> None:
        self.post.close()
        self.is_closed = True
