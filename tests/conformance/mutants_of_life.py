"""Mutants that are wrong about errors, about the end of a group, or that keep what they should give back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import timedelta

from good_backend import Arriving, Mail, MailBackend, Tensor
from mutant import caught_by
from posts import Hall, Post

from devices import Communicator, Group
from devices.errors import UnsupportedError

# Errors.


@caught_by("life.aborted")
class ErrorsAreSwallowed(Arriving):
    def wait(self) -> None:
        try:
            super().wait()
        except Exception:
            self.error = None


@caught_by("life.late_peer", patience=3.0)
class TheTimeoutIsIgnored(Mail):
    def deadline(self) -> float:
        return time.monotonic() + 3600


@caught_by("life.late_peer", patience=3.0)
class TheTimeoutIsAnHourWhateverWasAsked(MailBackend):
    def open(self, group: Group) -> Communicator:
        longer = Group(group.ranks, group.rank, group.device, group.store, timedelta(hours=1), group.name)
        return super().open(longer)


@caught_by("life.late_peer", patience=3.0)
class ALatePeerIsNoTimeoutError(Mail):
    def rest(self, verb: str, deadline: float, peer: int | None = None, name: str = "") -> None:
        try:
            super().rest(verb, deadline, peer, name)
        except TimeoutError:
            raise RuntimeError("something went wrong") from None


@caught_by("life.late_peer", patience=3.0)
class ALatePeerEndsTheProgram(Mail):
    def rest(self, verb: str, deadline: float, peer: int | None = None, name: str = "") -> None:
        try:
            super().rest(verb, deadline, peer, name)
        except TimeoutError:
            raise SystemExit(1) from None


# The end of a group.


@caught_by("life.aborted", patience=1.5)
class AbortDoesNothing(Mail):
    def abort(self) -> None:
        pass


@caught_by("life.aborted_by_a_thread", patience=1.5)
class AbortIsForTheNextVerb(Mail):
    # What is waiting already goes on waiting.
    def abort(self) -> None:
        self.is_broken = True

    def check(self, verb: str) -> None:
        if self.__dict__.get("is_broken"):
            raise RuntimeError("aborted")
        super().check(verb)


_of_a_rank: dict[int, weakref.WeakSet[Mail]] = {}


class _Related(Mail):
    """Knows all that its rank has opened."""

    @property
    def relatives(self) -> list[Mail]:
        return [mail for mail in self.siblings if mail is not self]

    def __init__(self, group: Group, post: Post) -> None:
        super().__init__(group, post)
        self.siblings = _of_a_rank.setdefault(threading.get_ident(), weakref.WeakSet())
        self.siblings.add(self)


@caught_by("life.aborted")
class AbortingOneGroupAbortsTheOthers(_Related):
    def abort(self) -> None:
        super().abort()
        for mail in self.relatives:
            Mail.abort(mail)


@caught_by("life.closed")
class ClosingOneGroupClosesTheOthers(_Related):
    def close(self) -> None:
        super().close()
        for mail in self.relatives:
            Mail.close(mail)


@caught_by("life.aborted")
class AbortTwiceIsAnError(Mail):
    def abort(self) -> None:
        if self.is_aborted:
            raise RuntimeError("aborted already")
        super().abort()


@caught_by("life.aborted_by_a_thread", patience=1.5)
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


@caught_by("life.communicator")
class CloseTwiceIsAnError(Mail):
    def close(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        super().close()


@caught_by("life.communicator")
class AbortAfterCloseIsAnError(Mail):
    def abort(self) -> None:
        if self.is_closed:
            raise RuntimeError("there is nothing to abort")
        super().abort()


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


@caught_by("life.last_message", patience=1.5)
class CloseLosesWhatWasSent(MailBackend):
    post = _ForgetfulHall


@caught_by("life.closed_alone", patience=1.5)
class CloseWaitsForAllRanks(Mail):
    def close(self) -> None:
        if not self.is_closed and not self.is_aborted:
            self.barrier().wait()
        super().close()


@caught_by("life.closed")
class CloseRaises(Mail):
    def close(self) -> None:
        super().close()
        raise RuntimeError("the post is on strike")


@caught_by("life.closed_under_way")
class WhatIsUnderWayAtTheEndSeemsDone(Arriving):
    def wait(self) -> None:
        if not (self.mail.is_aborted or self.mail.is_closed):
            super().wait()


# What is kept.


kept = contextlib.ExitStack()
"""What mutants keep; to be closed when a test is over."""


class _Keeping(MailBackend):
    """Keeps something for each group that it opens."""

    def open(self, group: Group) -> Communicator:
        self.keep(group)
        return super().open(group)

    def keep(self, group: Group) -> None:
        raise NotImplementedError


@caught_by("life.leaks_of_groups")
class EachGroupKeepsAFileOpen(_Keeping):
    def keep(self, group: Group) -> None:
        kept.callback(os.close, os.open(os.devnull, os.O_RDONLY))


@caught_by("life.leaks_of_groups")
class EachGroupKeepsAThread(_Keeping):
    def keep(self, group: Group) -> None:
        end = threading.Event()
        kept.callback(end.set)
        threading.Thread(target=end.wait, daemon=True).start()


@caught_by("life.leaks_of_groups")
class EachGroupKeepsMemory(_Keeping):
    def keep(self, group: Group) -> None:
        kept.callback(len, b"x" * (256 << 10))


@caught_by("life.leaks_of_verbs")
class EachBroadcastKeepsItsLetter(Mail):
    def into(self, verb: str, targets: Mapping[str, Tensor]) -> Arriving:
        arriving = super().into(verb, targets)
        if verb == "broadcast":
            finish = arriving.finish
            arriving.finish = lambda letters: (
                finish(letters),
                kept.callback(len, [*letters, *(letter.clone() for letter in letters)]),
            )
        return arriving


@caught_by("life.leaks_of_groups")
class ThereAreNumbersForSoManyGroups(_Keeping):
    count_opened = 0

    def keep(self, group: Group) -> None:
        type(self).count_opened += 1
        if self.count_opened > 400:
            raise UnsupportedError(f"{group}: there are no numbers left")


# What only processes have.


@caught_by("life.dead_peer", ranks="processes", patience=2.0)
class ADeadPeerIsAwaitedForEver(Mail):
    def deadline(self) -> float:
        return time.monotonic() + 3600

    def rest(self, verb: str, deadline: float, peer: int | None = None, name: str = "") -> None:
        super().rest(verb, deadline)


@caught_by("life.threads", ranks="processes")
class OnlyTheThreadThatOpenedAGroupMayCall(Mail):
    def __init__(self, group: Group, post: Post) -> None:
        super().__init__(group, post)
        self.thread = threading.get_ident()

    def check(self, verb: str) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError(f"{self.group}: {verb} on another thread than the one that opened the group")
        super().check(verb)


class _AtFork(Mail):
    """Does something in each process that is forked from its own."""

    def __init__(self, group: Group, post: Post) -> None:
        super().__init__(group, post)
        os.register_at_fork(after_in_child=self.at_fork)

    def at_fork(self) -> None:
        raise NotImplementedError


@caught_by("life.fork", ranks="processes", patience=5.0)
class AForkedProcessCleansUpForItsParent(_AtFork):
    def at_fork(self) -> None:
        self.post.close()


@caught_by("life.fork", ranks="processes", patience=5.0)
class AForkedProcessIsEnded(_AtFork):
    def at_fork(self) -> None:
        os._exit(7)
