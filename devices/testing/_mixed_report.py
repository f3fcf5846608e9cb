"""What a program asked of ranks of several kinds, and what that is predicted to take, one way and another."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from devices._interop import Assumed, Interop, Predicted, Side
from devices._observer import Called, Observer
from devices.testing._report import Report, size, table
from devices.topology import Interval
from devices.topology.estimate import duration

_ROOTED = {"gather", "scatter", "broadcast", "reduce", "send"}


@final
@dataclass(frozen=True, slots=True)
class Way:
    """What a verb takes in one of the ways that a report compares.

    Args:
        seconds: of the rank that is longest at it, all its calls one after the other.
        sent: bytes that all ranks send, by the name of the link.
    """

    seconds: Interval
    sent: Mapping[str, float] = field(hash=False)

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"seconds": self.seconds.as_data(), "sent": dict(self.sent)}


@final
@dataclass(frozen=True, slots=True)
class MixedReport:
    """What came of a run on ranks of several kinds.

    Args:
        name: how many ranks of what.
        interop: the fabric between them; "" where nobody knows of one.
        assumed: what is assumed of it.
        running: which of the ways the run itself was in.
        limits: what each kind of ranks was asked for, by the target's name.
        calls: how many calls there were, by verb, each collective counted once.
        ways: what each verb is predicted to take, by the way, then the verb.
        crossed: bytes that ranks have sent in this run to ranks of other domains, the words by which those compare
            their calls included.
    """

    name: str
    interop: str
    assumed: Mapping[str, str]
    running: str
    limits: Mapping[str, Report]
    calls: Mapping[str, int]
    ways: Mapping[str, Mapping[str, Way]]
    crossed: int

    def seconds(self, way: str) -> Interval:
        """Return what all calls are predicted to take."""
        total = Interval.exactly(0.0)
        for each in self.ways[way].values():
            total += each.seconds
        return total

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "interop": self.interop,
            "assumed": dict(self.assumed),
            "running": self.running,
            "limits": {name: report.as_data() for name, report in self.limits.items()},
            "calls": dict(self.calls),
            "ways": {way: {verb: each.as_data() for verb, each in found.items()} for way, found in self.ways.items()},
            "crossed": self.crossed,
        }

    def __str__(self) -> str:
        lines = [f"{self.name}{f', joined by {self.interop}' if self.interop else ''}:"]
        if self.assumed:
            lines.append(f"  assumed: {', '.join(f'{name}={choice}' for name, choice in self.assumed.items())}")
        for way, found in self.ways.items():
            here = ", as this run was" if way == self.running else ""
            lines.append(f"  {way}{here}: {self.seconds(way).shown(_time)} predicted")
            rows = [("verb", "calls", "seconds", "sent")]
            for verb, each in found.items():
                sent = ", ".join(f"{size(round(count))} over {link}" for link, count in each.sent.items() if count)
                rows.append((verb, str(self.calls[verb]), each.seconds.shown(_time), sent or "nothing"))
            lines += [f"  {line}" for line in table(rows)]
        if not self.ways:
            lines.append("  what joins them is not known, and so nothing is predicted")
        if self.crossed:
            lines.append(f"  sent to other domains in this run: {size(self.crossed)}")
        return "\n".join([*lines, *map(str, self.limits.values())])


@final
class Traffic(Observer):
    """Counts the calls of ranks, and what they are predicted to take.

    Args:
        interop: what joins the ranks, and predicts.
        assumed: what is assumed of it.
        sides_of: returns the sides of a group, given its ranks of the world.
    """

    def __init__(
        self, interop: Interop | None, assumed: Assumed, sides_of: Callable[[Sequence[int]], list[Side]]
    ) -> None:
        self._interop, self._assumed, self._sides_of = interop, assumed, sides_of
        self._ways = {} if interop is None else dict(interop.compared(assumed))
        self._calls: Counter[str] = Counter()
        self._sent: dict[tuple[str, str], Counter[str]] = {}
        self._seconds: dict[tuple[str, str], dict[int, Interval]] = {}
        self._known: dict[object, Predicted] = {}
        self._crossed: Counter[int] = Counter()
        self._lock = threading.Lock()

    def cross(self, rank: int, sent: int) -> None:
        """Count bytes that a rank has sent to another domain."""
        with self._lock:
            self._crossed[rank] += sent

    def called(self, call: Called) -> None:
        if call.group.size == 1:
            return
        group, me = call.group, call.group.ranks[call.group.rank]
        is_message = call.verb in ("send", "recv")
        # A collective is counted by the first of its ranks, a message by who sends it.
        counts = call.verb == "send" if is_message else group.rank == 0
        with self._lock:
            self._calls[call.verb] += counts or call.verb == "recv"
            for way, assumed in self._ways.items():
                found = self._predicted(call, way, assumed)
                by_rank = self._seconds.setdefault((way, call.verb), {})
                by_rank[me] = by_rank.get(me, Interval.exactly(0.0)) + Interval(found.low, found.expected, found.high)
                sent = self._sent.setdefault((way, call.verb), Counter())
                if counts:
                    sent.update(found.sent)

    def _predicted(self, call: Called, way: str, assumed: Assumed) -> Predicted:
        assert self._interop is not None
        group = call.group
        count = call.nbytes
        if call.verb in ("all_gather", "gather") or (call.verb == "scatter" and group.rank != call.peer):
            count *= group.size
        root = (
            group.rank if call.verb == "send" else call.peer if call.verb in _ROOTED and call.peer is not None else -1
        )
        other = call.peer if call.verb in ("send", "recv") and call.peer is not None else -1
        key = way, group.ranks, call.verb, count, root, other
        if key not in self._known:
            sides = self._sides_of(group.ranks)
            if other >= 0:
                # A message is between two ranks, whatever the group.
                pair = sorted((group.rank, other))
                sides = self._sides_of([group.ranks[place] for place in pair])
                root = pair.index(root) if root >= 0 else pair.index(other)
            self._known[key] = self._interop.predicted(call.verb, count, root, sides, assumed)
        return self._known[key]

    def report(self, name: str, limits: Mapping[str, Report]) -> MixedReport:
        """Return what was counted so far."""
        ways: dict[str, dict[str, Way]] = {way: {} for way in self._ways}
        for (way, verb), by_rank in sorted(self._seconds.items()):
            longest = max(by_rank.values(), key=lambda each: each.expected)
            ways[way][verb] = Way(longest, dict(self._sent[way, verb]))
        running = next((way for way, assumed in self._ways.items() if dict(assumed) == dict(self._assumed)), "")
        fabric = "" if self._interop is None else self._interop.name
        calls = dict(sorted(self._calls.items()))
        return MixedReport(name, fabric, self._assumed, running, limits, calls, ways, self._crossed.total())


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1e-6 or not seconds else f"{seconds * 1e9:.3g} ns"
