"""Whether what carries each domain takes a call: told to all ranks, once for each kind, before anything crosses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import final

import torch

from devices._backend import Asked, Group
from devices.domains.bridge import Bridge, Crossing
from devices.domains.members import Domains
from devices.errors import ArgumentError, DevicesError, DtypeError, UnsupportedError

Tensor = torch.Tensor

PATIENCE = 5.0
"""Seconds that a rank which was refused gives the others of its domain to be refused too, or more by `SHARE`."""

SHARE = 0.05
"""So much of the group's timeout it gives them at least: a vendor may compile a call before it refuses it."""

VERBS = frozenset(("all_reduce", "all_gather", "reduce_scatter", "broadcast"))
"""Those that go by a domain's own verbs."""

_REFUSALS: tuple[type[DevicesError], ...] = (UnsupportedError, ArgumentError, DtypeError)
_KINDS: Mapping[str, type[DevicesError]] = MappingProxyType({kind.__name__: kind for kind in _REFUSALS})

_WORDS = 1024
"""The bytes of what a rank says."""

_Said = list[str]
"""The kind and text of a refusal, and by whom; empty where there is none."""


class _RefusedError(Exception):
    """Ends a call that another rank was refused."""

    def __init__(self, error: DevicesError) -> None:
        super().__init__(str(error))
        self.error = error


@final
class Consent:
    """Runs the calls of a group, over its domains, of which what carries one may refuse what the others take.

    The first call of a kind, which is its verb, dtype and op, is begun in each domain; before anything crosses the
    ranks tell each other whether it was refused, and if so, all raise it and the group goes on. Where not all ranks of
    a domain are refused, the others may be waiting in there: then the group is closed, as by any other error.

    Args:
        group: the members.
        domains: who is where.
        bridge: reaches all ranks.
        give_up: tells all of an error, and makes whatever waits here fail soon; None where no domain refuses anything.
    """

    def __init__(
        self, group: Group, domains: Domains, bridge: Bridge, give_up: Callable[[BaseException], None] | None
    ) -> None:
        self._group, self._bridge, self._give_up = group, bridge, give_up
        self._name = domains.names[domains.of_rank(group.rank)]
        self._lead, *self._mates = domains.members[domains.of_rank(group.rank)]
        self._leads = [ranks[0] for ranks in domains.members]
        self._given: set[tuple[str, torch.dtype | None, str]] = set()
        self._is_open = False

    def run(self, call: Asked, work: Callable[[], None]) -> DevicesError | None:
        """Do a call, which starts what crosses by `start`; return what all ranks raise if it was refused."""
        kind = call.verb, call.dtype, call.op
        if self._give_up is None or call.verb not in VERBS or kind in self._given:
            work()
            return None
        self._is_open = True
        try:
            work()
            # Of a call that nothing crosses in, of no elements or that messages make up, nobody has been asked.
            if not self._is_open:
                self._given.add(kind)
        except _RefusedError as refused:
            return refused.error
        except _REFUSALS as error:
            if not self._is_open:
                raise
            return self._asked(error)
        finally:
            self._is_open = False
        return None

    def start(self, sends: Sequence[tuple[int, Tensor]], recvs: Sequence[tuple[int, Tensor]]) -> Crossing:
        """Start messages of a call to and from ranks of the group, once all have said that they take it."""
        if self._is_open and (refused := self._asked(None)) is not None:
            raise _RefusedError(refused)
        return self._bridge.start(sends, recvs)

    def _asked(self, error: DevicesError | None) -> DevicesError | None:
        """Tell the others whether this rank was refused a call; return the error if any was."""
        self._is_open = False
        me = f"rank {self._group.ranks[self._group.rank]} of {self._name}"
        mine = [] if error is None else [type(error).__name__, str(error), me]
        timer = None
        if error is not None and self._give_up is not None:
            patience = max(PATIENCE, SHARE * self._group.timeout.total_seconds())
            timer = threading.Timer(patience, self._give_up, [error])
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            ours = self._in_domain(mine)
        except Exception as lost:
            if error is None:
                raise
            # Nobody else of the domain was refused.
            raise error from lost
        finally:
            if timer is not None:
                timer.cancel()
        said = self._of_all(ours)
        if error is not None or not said:
            return error
        kind, text, by = said
        return _KINDS.get(kind, UnsupportedError)(f"{self._group}, {self._name}: {text}, as {by} was told")

    def _in_domain(self, mine: _Said) -> _Said:
        """Return, on the first rank of a domain, what the first of it to be refused says."""
        if self._group.rank != self._lead:
            self._swap(mine, [self._lead], [])
            self._swap([], [], [self._lead])
            return []
        said = [mine, *self._swap([], [], self._mates)]
        # Nobody is still in there.
        self._swap([], self._mates, [])
        return next(filter(None, said), [])

    def _of_all(self, ours: _Said) -> _Said:
        """Return what the first domain to be refused says."""
        if self._group.rank != self._lead:
            return self._swap([], [], [self._lead])[0]
        others = [lead for lead in self._leads if lead != self._lead]
        heard = iter(self._swap(ours, others, others))
        found = next(filter(None, [ours if lead == self._lead else next(heard) for lead in self._leads]), [])
        self._swap(found, self._mates, [])
        return found

    def _swap(self, said: _Said, to: Sequence[int], of: Sequence[int]) -> list[_Said]:
        """Say something to some ranks; return what others say."""
        words = torch.frombuffer(bytearray(_words(said)), dtype=torch.uint8)
        came = [(peer, torch.empty_like(words)) for peer in of]
        self._bridge.start([(peer, words) for peer in to], came).wait()
        return [json.loads(each.numpy().tobytes()) for _, each in came]


def _words(said: _Said) -> bytes:
    """Return what is said, as bytes; of a text that is too long its beginning."""
    while len(words := json.dumps(said).encode()) > _WORDS:
        said = [said[0], said[1][: len(said[1]) // 2], said[2][:100]]
    return words.ljust(_WORDS)
