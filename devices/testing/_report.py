"""What a program asked of a target: its calls and bytes by line, what was refused or composed, memory by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

NATIVE, COMPOSED, REFUSED = "native", "composed", "refused"


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """All calls of one verb from one line that had the same outcome.

    Args:
        line: where in the program, "file:line".
        verb: its name; "memory" for more than there is; "group" and "world".
        dtype: that of the tensors, "" where there is none.
        outcome: "native", "composed" or "refused".
        reason: why it was not native.
        calls: how many, of all ranks.
        bytes: what they sent in all.
    """

    line: str
    verb: str
    dtype: str
    outcome: str
    reason: str
    calls: int
    bytes: int


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What came of a program on a target.

    Args:
        target: the target's name.
        asked: by line, then verb.
        peak_memory: bytes of tensors that each rank held at most, by rank.
        memory: bytes that a rank has on the target; None when unknown.
    """

    target: str
    asked: tuple[Asked, ...]
    peak_memory: dict[int, int]
    memory: int | None

    @property
    def refused(self) -> tuple[Asked, ...]:
        """What the target refuses."""
        return tuple(each for each in self.asked if each.outcome == REFUSED)

    @property
    def composed(self) -> tuple[Asked, ...]:
        """What the target lacks and `devices` composes."""
        return tuple(each for each in self.asked if each.outcome == COMPOSED)

    def as_data(self) -> dict[str, Any]:
        """Return the report as plain data that JSON can carry."""
        peaks = {str(rank): peak for rank, peak in self.peak_memory.items()}
        return {
            "target": self.target,
            "asked": [asdict(each) for each in self.asked],
            "peak_memory": peaks,
            "memory": self.memory,
        }

    def __str__(self) -> str:
        lines = [f"on {self.target}:"]
        rows = [
            (each.line, each.verb, each.dtype, f"{each.calls}", size(each.bytes), each.outcome) for each in self.asked
        ]
        lines += table([("line", "verb", "dtype", "calls", "bytes", ""), *rows])
        lines += [f"  {each.line}: {each.verb} is {each.outcome}: {each.reason}" for each in self.asked if each.reason]
        if self.peak_memory:
            rank = max(self.peak_memory, key=lambda rank: self.peak_memory[rank])
            of = f" of {size(self.memory)}" if self.memory is not None else ""
            lines.append(f"  most memory: rank {rank} held {size(self.peak_memory[rank])}{of}")
        return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = (" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in aligned]


def size(count: int) -> str:
    """Return a number of bytes in words."""
    number, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"
