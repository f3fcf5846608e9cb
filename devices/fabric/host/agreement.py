"""Every collective carries a fingerprint of what its ranks must agree on, beside the number of the call.

Both are one word, which a rank sets when it comes to the call and its peers read: they see at once that it has
come, and that it made the same call. If not, all ranks tell each other their calls and raise the same error.
"""

from __future__ import annotations

import hashlib
import time
from typing import final

from devices._backend import Group
from devices.algorithms.lines import caller
from devices.errors import CollectiveError, MismatchError
from devices.fabric.host.layout import FLAG
from devices.fabric.host.notes import mark_from_json, mark_to_json
from devices.fabric.host.segment import Segment
from devices.fabric.host.watch import Watch
from devices.fabric.mark import Mark, difference

BITS = 24
_MASK = (1 << BITS) - 1

PATIENCE = 0.7
"""Seconds that a rank waits for the others' words on a mismatch; one that has not come by then is left out."""

_SLOW = 5.0
"""Seconds that it waits for those who have come to the call: they say theirs at once, unless the machine is busy."""

Key = tuple[str, str, int, str, int, tuple[int, ...]]
"""What the ranks of a call must agree on: verb, dtype, elements, reduce op, root, sizes."""

_fingerprints: dict[Key, int] = {}
_known: dict[int, Key] = {}
"""What the fingerprints that this process has made stand for."""


def fingerprint(key: Key) -> int:
    """Return 24 bits of `key`, the same in every process; two keys share them once in 16 million."""
    found = _fingerprints.get(key)
    if found is None:
        if len(_fingerprints) > 10_000:
            # A program whose shapes never repeat.
            _fingerprints.clear()
            _known.clear()
        digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
        found = _fingerprints[key] = int.from_bytes(digest, "little") & _MASK
        _known[found] = key
    return found


@final
class Agreement:
    """The collective calls of one rank of a group, numbered and compared.

    Args:
        segment: the group's memory.
        group: the members.
        watch: what this rank waits by.
    """

    def __init__(self, segment: Segment, group: Group, watch: Watch) -> None:
        self._words = segment.words
        self._group = group
        self._watch = watch
        flags = [segment.layout.control_word(rank) + FLAG for rank in range(group.size)]
        self._flags = flags
        self.mine = flags[group.rank]
        # By parity of the call: the words of the others.
        self.others = tuple(
            tuple(flag + parity for rank, flag in enumerate(flags) if rank != group.rank) for parity in (0, 1)
        )
        self._ranks = [rank for rank in range(group.size) if rank != group.rank]
        self.number = 0
        watch.last, watch.number = self.last, lambda: self.number

    def come(self, key: Key) -> None:
        """Say that this rank has come to its next call; what it wrote before, the others then see."""
        self._watch.check()
        self.number += 1
        self._words[self.mine + (self.number & 1)] = (self.number << BITS) | fingerprint(key)

    def meet(self, key: Key) -> None:
        """Wait until all ranks have come to the call, and made the same.

        Raises:
            MismatchError: one made another.
            CollectiveError: one will not come.
        """
        value = (self.number << BITS) | fingerprint(key)
        words = self._words
        others = self.others[self.number & 1]
        for index in others:
            if words[index] != value:
                if not self._watch.see(words, others, value):
                    self._meet_late(value, key)
                break
        if words[0]:
            self._watch.check_others()

    def _meet_late(self, value: int, key: Key) -> None:
        words, number = self._words, self.number
        indices = self.others[number & 1]

        def is_ready() -> bool:
            for index in indices:  # noqa: SIM110 - a generator costs more than the look
                if words[index] >> BITS < number:
                    return False
            return True

        def missing() -> list[int]:
            return [rank for rank, at in zip(self._ranks, indices, strict=True) if words[at] >> BITS < number]

        def is_odd() -> bool:
            return any(words[at] >> BITS == number and words[at] != value for at in indices)

        # A rank that made another call is known before the last has come.
        self._watch.until(lambda: is_ready() or is_odd(), missing, lambda: self.about(key))
        if is_odd():
            raise self._mismatch(key)

    def refuse(self, key: Key, what: str) -> CollectiveError:
        """Return the error for a call that this rank finds to be wrong, and tell the others of it."""
        mark = self._mark(key)
        return self._watch.fail(MismatchError(f"rank {mark.rank}: {mark}: {what} ({mark.line})"))

    def about(self, key: Key) -> str:
        """Return what this rank's call is, for an error."""
        verb, dtype, size, op, root, _ = key
        parts = [f"{size} {dtype}" if size >= 0 else dtype]
        parts += [f"op {op!r}"] if op else []
        parts += [f"root {self._group.ranks[root]}"] if root >= 0 else []
        return f"{verb}({', '.join(filter(None, parts))}), call {self.number} of the group,"

    def _mark(self, key: Key) -> Mark:
        verb, dtype, size, op, root, sizes = key
        me = self._group.ranks[self._group.rank]
        return Mark(verb, self._group.name, self.number, dtype, size, op, root, me, caller(), sizes)

    def last(self, rank: int) -> str:
        """Return what a rank's last call was, as far as this process knows it."""
        value = max(self._words[self._flags[rank]], self._words[self._flags[rank] + 1])
        if not value:
            return "; it has made no call of the group"
        key = _known.get(value & _MASK)
        return f"; its last was call {value >> BITS}" + (f", {key[0]}" if key else "")

    def _mismatch(self, key: Key) -> CollectiveError:
        """Tell the others what this rank called, hear what they did, and return the error."""
        mine = self._mark(key)
        watch = self._watch
        watch.fail(
            MismatchError(f"{self._group}: {mine}: a rank made another call"), mark=mark_to_json(mine), is_final=False
        )
        start = time.monotonic()
        while unheard := [rank for rank in self._ranks if not watch.has_failed(rank)]:
            if time.monotonic() - start > (_SLOW if any(map(self._has_come, unheard)) else PATIENCE):
                break
            if (ended := watch.failure_of(self._ranks)) is not None:
                # It made its call for an error of its own: that one is to be told.
                watch.error = ended
                return ended
            time.sleep(0.0005)
        marks = {mine.rank: mine}
        for rank in self._ranks:
            found = watch.report(rank).get("mark")
            if isinstance(found, list) and watch.has_failed(rank):
                other = mark_from_json(found)
                marks[other.rank] = other
        said = difference(marks)
        silent = [self._group.ranks[rank] for rank in self._ranks if self._group.ranks[rank] not in marks]
        if said is None:
            # What the odd one called is known by its fingerprint alone.
            said = "the ranks' calls differ; this one was made at " + mine.line
        if silent:
            said += f"; not heard of: rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
        return watch.fail(MismatchError(f"rank {mine.rank}: {mine}: {said}"), mark=mark_to_json(mine))

    def _has_come(self, rank: int) -> bool:
        """Return whether a rank has come to the call that this one is in."""
        return self._words[self._flags[rank] + (self.number & 1)] >> BITS == self.number
