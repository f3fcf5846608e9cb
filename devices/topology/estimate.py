"""What a prediction says: an interval, its parts, and what it rests on. Never a bare number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """What a figure is expected to be, and between what it will lie.

    >>> Interval(1.0, 2.0, 4.0) + Interval.exactly(1.0)
    Interval(low=2.0, expected=3.0, high=5.0)
    """

    low: float
    expected: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.expected <= self.high:
            raise ValueError(f"{self.expected!r} does not lie between {self.low!r} and {self.high!r}")

    @staticmethod
    def exactly(value: float) -> Interval:
        """Return the interval that is one number."""
        return Interval(value, value, value)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> Interval:
        """Return the interval of so many times the figure."""
        return Interval(self.low * factor, self.expected * factor, self.high * factor)

    def under(self, whole: float) -> Interval:
        """Return the interval of `whole` divided by the figure: work over time, say."""
        return Interval(whole / self.high, whole / self.expected, whole / self.low)

    def as_data(self) -> dict[str, float]:
        """Return it for JSON."""
        return {"low": self.low, "expected": self.expected, "high": self.high}

    def shown(self, text: Callable[[float], str]) -> str:
        """Return it for people."""
        return f"{text(self.expected)} ({text(self.low)} to {text(self.high)})"


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a collective takes.

    Args:
        seconds: the interval.
        algorithm: how the data goes, as "ring, LL128".
        latency: the part of the expected seconds that is there however few the bytes are.
        transfer: the part that the bytes take.
        basis: what the figures and the interval rest on.
        speculative: whether it rests on hardware that is announced, or on what somebody assumes.
        doubts: what is not known or not sure of what it rests on.
    """

    seconds: Interval
    algorithm: str
    latency: float
    transfer: float
    basis: str
    speculative: bool = False
    doubts: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        mark = ", SPECULATIVE" if self.speculative else ""
        parts = f"latency {duration(self.latency)}, transfer {duration(self.transfer)}"
        return f"{self.seconds.shown(duration)} by {self.algorithm}: {parts}{mark}"

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "seconds": self.seconds.as_data(),
            "algorithm": self.algorithm,
            "latency": self.latency,
            "transfer": self.transfer,
            "basis": self.basis,
            "speculative": self.speculative,
            "doubts": list(self.doubts),
        }


def around(
    algorithm: str, latency: float, transfer: float, spread: tuple[float, float], basis: str, doubts: Sequence[str] = ()
) -> Estimate:
    """Return the estimate whose ends are the two factors of `spread` times what is expected."""
    expected = latency + transfer
    seconds = Interval(expected * spread[0], expected, expected * spread[1])
    return Estimate(seconds, algorithm, latency, transfer, basis, doubts=tuple(doubts))


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them.

    >>> duration(3.2e-5), duration(0.0042), duration(90000)
    ('32 us', '4.2 ms', '25 h')
    """
    for unit, size, below in (("us", 1e-6, 1e-3), ("ms", 1e-3, 1), ("s", 1, 600), ("min", 60, 36000)):
        if seconds < below:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"
