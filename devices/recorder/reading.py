"""Reads the files that flight recorders leave, and lays the ranks' calls side by side."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from devices.errors import ArgumentError
from devices.recorder.files import FORMAT
from devices.recorder.record import CAPACITY, FlightRecord

_FIELDS = {field.name: field.type for field in dataclasses.fields(FlightRecord)}
_KINDS: dict[Any, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
}

_ALIKE = ("verb", "op", "root")
_ALIKE_TOO = {"all_reduce": ("dtype", "numel"), "reduce": ("dtype", "numel"), "broadcast": ("dtype", "numel")}
"""In what all ranks' calls must agree, always and for some verbs."""


@final
@dataclass(frozen=True, slots=True)
class Flown:
    """What one rank left.

    Args:
        rank: which.
        size: how many ranks there were.
        host: where it ran.
        why: what the file was last written at: "running", "error" or "exit".
        groups: the ranks of each group that is in its calls, by name.
        calls: the oldest first.
    """

    rank: int
    size: int
    host: str
    why: str
    groups: Mapping[str, tuple[int, ...]]
    calls: tuple[FlightRecord, ...]


@final
@dataclass(frozen=True, slots=True)
class Row:
    """What the ranks made of one call of a group; or a message, which is one rank's.

    Args:
        group: the group's name.
        number: which of its calls; 0 for a message.
        members: the ranks that should have made it.
        by_rank: the ranks that have.
    """

    group: str
    number: int
    members: tuple[int, ...]
    by_rank: Mapping[int, FlightRecord]

    @property
    def began(self) -> float:
        return min(record.began for record in self.by_rank.values())

    @property
    def first(self) -> FlightRecord:
        return min(self.by_rank.values(), key=lambda record: record.began)

    def difference(self) -> str | None:
        """Return in what the ranks' calls differ, in words; None if they do not."""
        for field in (*_ALIKE, *_ALIKE_TOO.get(self.first.verb, ())):
            by_value: dict[object, list[int]] = {}
            for rank, record in sorted(self.by_rank.items()):
                by_value.setdefault(getattr(record, field), []).append(rank)
            if len(by_value) > 1:
                values = "; ".join(f"{value!r} on {ranks_in_words(ranks)}" for value, ranks in by_value.items())
                return f"call #{self.number} of group {self.group!r} differs in {field}: {values}"
        return None


def ranks_in_words(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


# From files.


def read(folder: Path) -> list[Flown]:
    """Return what the ranks of one job left in `folder`, by rank.

    Raises:
        ArgumentError: there is nothing, or a file that is none of a flight recorder, or files of several jobs.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give the one that DEVICES_FLIGHT named when the program ran")
    paths = [path for path in folder.iterdir() if re.fullmatch(r"rank-\d+\.json", path.name)]
    if not paths:
        raise ArgumentError(f"{folder} holds no file rank-0.json, rank-1.json ... of a flight recorder")
    found = sorted((_read_file(path) for path in paths), key=lambda flown: flown.rank)
    sizes = {flown.size: flown.rank for flown in found}
    if len(sizes) > 1:
        said = ", ".join(f"rank-{rank}.json is of a world of {size}" for size, rank in sorted(sizes.items()))
        raise ArgumentError(f"{folder} holds files of more than one job ({said}); use a folder for each")
    return found


def _read_file(path: Path) -> Flown:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ArgumentError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        said = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ArgumentError(f"{path} is no file of a flight recorder: its format is {said!r}, not {FORMAT!r}")
    try:
        flown = Flown(
            rank=_of(data["rank"], int),
            size=_of(data["size"], int),
            host=_of(data["host"], str),
            why=_of(data["why"], str),
            groups={name: tuple(_of(rank, int) for rank in ranks) for name, ranks in data["groups"].items()},
            calls=tuple(_call(call) for call in data["calls"]),
        )
        unknown = {call.group for call in flown.calls} - flown.groups.keys()
        if unknown:
            raise ValueError(f"the ranks of group {min(unknown)!r} are missing")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"{path} is broken: {type(error).__name__}: {error}") from error
    if path.name != f"rank-{flown.rank}.json" or not 0 <= flown.rank < flown.size:
        raise ArgumentError(f"{path} says that it is of rank {flown.rank} of {flown.size}")
    return flown


def _call(data: Mapping[str, Any]) -> FlightRecord:
    for name, kind in _FIELDS.items():
        _of(data[name], *_KINDS[kind])
    return FlightRecord(**{name: data[name] for name in _FIELDS})


def _of(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{value!r} stands where a value of type {kinds[0].__name__} should")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return value


# Side by side.


def side_by_side(found: Sequence[Flown]) -> list[Row]:
    """Return the calls of all ranks, those that belong together in one row, in the order of time."""
    members = {name: ranks for flown in found for name, ranks in flown.groups.items()}
    together: dict[tuple[str, int], dict[int, FlightRecord]] = {}
    rows = []
    for flown in found:
        for record in flown.calls:
            if record.number:
                together.setdefault((record.group, record.number), {})[flown.rank] = record
            else:
                rows.append(Row(record.group, 0, (flown.rank,), {flown.rank: record}))
    rows += [Row(group, number, members[group], by_rank) for (group, number), by_rank in together.items()]
    return sorted(rows, key=lambda row: row.began)


def has_forgotten(flown: Flown, row: Row) -> bool:
    """Return whether the rank's recorder goes back too little to know of that call."""
    return len(flown.calls) >= CAPACITY and flown.calls[0].began > row.began - 1


def behind(found: Sequence[Flown], rows: Sequence[Row]) -> list[str]:
    """Return, for each group whose ranks have not all made the same calls, who is behind and who is not."""
    by_rank = {flown.rank: flown for flown in found}
    last: dict[str, Row] = {}
    for row in rows:
        if row.number and (row.group not in last or last[row.group].number < row.number):
            last[row.group] = row
    said = []
    for group, row in last.items():
        late = [rank for rank in row.members if rank in by_rank and rank not in row.by_rank]
        late = [rank for rank in late if not has_forgotten(by_rank[rank], row)]
        for rank in late[:8]:
            made = [record for record in by_rank[rank].calls if record.group == group and record.number]
            at = f" at {made[-1].line}" if made and made[-1].line else ""
            what = (
                f"its last call is {made[-1].verb} #{made[-1].number}, {made[-1].state}{at}" if made else "it made none"
            )
            said.append(
                f"group {group!r}: rank {rank} has not made call #{row.number}; {what}. "
                f"{ranks_in_words(sorted(row.by_rank))} made it: {row.first}"
            )
        if len(late) > 8:
            said.append(f"group {group!r}: nor have {ranks_in_words(late[8:])}")
    return said
