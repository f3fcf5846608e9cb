"""What was measured of this host's own collectives, and how it answers for sizes between those measured."""

from __future__ import annotations

import bisect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from devices.errors import ArgumentError, TopologyError
from devices.topology.estimate import Estimate, Interval

VERSION = 1
VARIABLE = "DEVICES_CALIBRATION"
"""The variable that names the file, where it is not in the user's cache."""

BESIDE = 1.1
"""So many times what was measured lies what is not: at other sizes, and at another time of a host that is as quiet."""

BUSY = 0.05
"""A host of whose CPUs other work has more than this is not quiet: calls then take up to several times as long."""

# Whose data goes the same way as that of a verb that is measured.
_LIKE = {"reduce": "all_reduce", "gather": "all_gather", "scatter": "broadcast", "send": "permute"}


@final
@dataclass(frozen=True, slots=True)
class Knot:
    """One size that was measured: its bytes, and the seconds of a fast call, the median and a slow one."""

    bytes: int
    low: float
    seconds: float
    high: float


@final
@dataclass(frozen=True, slots=True)
class Calibration:
    """What `devices calibrate` measured.

    Args:
        host: the machine's name.
        cpus: how many it has.
        measured: the date.
        backend: what the groups were opened on.
        groups: for each number of ranks the curve of each verb, the knots in order of their bytes.
        others: the share of the CPUs that other work had meanwhile; None where that is not known.
    """

    host: str
    cpus: int
    measured: str
    backend: str
    groups: Mapping[int, Mapping[str, Sequence[Knot]]] = field(hash=False)
    others: float | None = None

    def time(self, verb: str, size: float, ranks: int | None = None) -> Estimate:
        """Return how long a verb takes; `devices.topology.predict` says what the arguments mean.

        Raises:
            TopologyError: no group of that many ranks was measured, or not with that verb.
        """
        count = max(self.groups) if ranks is None else ranks
        if count == 1:
            return Estimate(Interval.exactly(0.0), "none", 0.0, 0.0, self.basis)
        if count not in self.groups:
            known = ", ".join(map(str, sorted(self.groups)))
            raise TopologyError(
                f"{count} ranks of {self.host} were not measured, {known} were; run `devices calibrate --ranks {count}`"
            )
        curves = self.groups[count]
        measured = verb if verb in curves else _LIKE.get(verb, verb)
        if measured not in curves:
            raise TopologyError(f"{verb} was not measured on {self.host}, {', '.join(curves)} were; calibrate again")
        knots = curves[measured]
        doubts: tuple[str, ...] = (
            () if measured == verb else (f"{verb} was not measured; {measured} was, whose data goes the same way",)
        )
        low, expected, high = (_between(knots, size, what) for what in ("low", "seconds", "high"))
        wider = 2.0 if doubts else BESIDE
        found = Interval(low / wider, expected, high * wider)
        latency = min(knots[0].seconds, found.expected)
        if self.is_busy:
            doubts += (self.beside,)
        return Estimate(found, "shared memory", latency, found.expected - latency, self.basis, doubts=doubts)

    @property
    def basis(self) -> str:
        """What the answers rest on."""
        return f"measured on {self.host}, {self.cpus} CPUs, {self.measured}, backend {self.backend}"

    @property
    def is_busy(self) -> bool:
        """Whether other work had so much of the CPUs that on a quiet host calls take another time."""
        return self.others is not None and self.others > BUSY

    @property
    def beside(self) -> str:
        """How much other work there was."""
        return f"other work had {self.others or 0:.0%} of the CPUs of {self.host} when it was measured"

    def bandwidth(self, verb: str, ranks: int) -> float:
        """Return the bytes per second of a verb at the largest size that was measured."""
        last = self.groups[ranks][verb][-1]
        return last.bytes / last.seconds

    def joined(self, older: Calibration) -> Calibration:
        """Return this, with the groups of an older one of the same host that it has not itself."""
        if (older.host, older.cpus, older.backend) != (self.host, self.cpus, self.backend):
            return self
        groups = {**older.groups, **self.groups}
        known = [each for each in (self.others, older.others if older.groups.keys() - self.groups else None) if each]
        return Calibration(self.host, self.cpus, self.measured, self.backend, groups, max(known, default=self.others))

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "version": VERSION,
            "host": self.host,
            "cpus": self.cpus,
            "measured": self.measured,
            "backend": self.backend,
            "others": self.others,
            "groups": {
                str(ranks): {
                    verb: [[knot.bytes, knot.low, knot.seconds, knot.high] for knot in knots]
                    for verb, knots in curves.items()
                }
                for ranks, curves in sorted(self.groups.items())
            },
        }


def _between(knots: Sequence[Knot], size: float, what: str) -> float:
    """Return the seconds at a size: on a straight line between two knots, seen in powers of both."""
    first, last = knots[0], knots[-1]
    if size <= first.bytes:
        return float(getattr(first, what))
    if size >= last.bytes:
        return float(getattr(last, what)) * size / last.bytes
    place = bisect.bisect_right([knot.bytes for knot in knots], size)
    one, other = knots[place - 1], knots[place]
    share = math.log(size / one.bytes) / math.log(other.bytes / one.bytes)
    return float(getattr(one, what) * (getattr(other, what) / getattr(one, what)) ** share)


def calibration_file() -> Path:
    """Return where the measurements of this user's host are kept."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "devices" / "calibration.json"


def write_calibration(calibration: Calibration, file: Path) -> None:
    """Keep what was measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f"{file.name}.{os.getpid()}")
    half.write_text(json.dumps(calibration.as_data(), indent=1) + "\n", encoding="utf-8")
    half.replace(file)


def read_calibration(file: Path | None = None) -> Calibration:
    """Return what was measured of this host.

    Raises:
        TopologyError: nothing was, or the file is no calibration.
    """
    path = calibration_file() if file is None else file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TopologyError(
            f"nothing was measured of this host: there is no {path}; run `devices calibrate`, which takes 10 s"
        ) from None
    except (OSError, ValueError) as error:
        raise TopologyError(f"{path} cannot be read: {error}") from error
    try:
        return _from_data(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TopologyError(f"{path} is no calibration ({error!r}); run `devices calibrate` again") from error


def _from_data(found: Any) -> Calibration:
    if found["version"] != VERSION:
        raise ValueError(f"version {found['version']!r}")
    groups = {}
    for ranks, curves in found["groups"].items():
        groups[int(ranks)] = {verb: tuple(_knot(*knot) for knot in knots) for verb, knots in curves.items()}
        for knots in groups[int(ranks)].values():
            sizes = [knot.bytes for knot in knots]
            if not sizes or sizes != sorted(set(sizes)):
                raise ValueError(f"the sizes {sizes} do not ascend")
    if not groups:
        raise ValueError("no group was measured")
    others = None if found.get("others") is None else float(found["others"])
    return Calibration(
        str(found["host"]), int(found["cpus"]), str(found["measured"]), str(found["backend"]), groups, others
    )


def _knot(size: int, low: float, seconds: float, high: float) -> Knot:
    if not (size > 0 and 0 < low <= seconds <= high < math.inf):
        raise ValueError(f"{size} bytes in {low}, {seconds}, {high} seconds")
    return Knot(int(size), float(low), float(seconds), float(high))


def knot_of(size: int, turns: Sequence[Sequence[float]]) -> Knot:
    """Return what the seconds of the calls of several turns say.

    In some turn the tenth part of the calls took less than `low`, and in some turn more than `high`.
    """
    if not turns or not all(turns):
        raise ArgumentError("a knot needs at least one call in each turn")
    ends = [[sorted(turn)[round(share * (len(turn) - 1))] for turn in turns] for share in (0.1, 0.9)]
    every = sorted(seconds for turn in turns for seconds in turn)
    middle = every[round(0.5 * (len(every) - 1))]
    return Knot(size, min(middle, *ends[0]), middle, max(middle, *ends[1]))
