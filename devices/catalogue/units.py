"""The units that figures have, what a value in each of them may be, and how sources print them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from devices._backend import REDUCE_OPS

VERBS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter",
    "send", "recv", "barrier",
)  # fmt: skip
"""The verbs of a process group of torch. It has no `permute`: that is made of `send` and `recv`."""

DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128",
)  # fmt: skip
"""torch's dtypes, by name."""

OPS = REDUCE_OPS
"""The reduce ops."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_time(value: object) -> bool:
    if not isinstance(value, list):
        return _is_number(value)
    return len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


def _is_ascending(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value)) and value == sorted(set(value))


def _are_dtypes(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) and name in DTYPES for name in value)
        and len(set(value)) == len(value)
    )


def dimensions(shape: str) -> tuple[int, ...]:
    """Return the sizes of a shape, one for each dimension; none for a switch.

    >>> dimensions("torus 4x4x4"), dimensions("switch")
    ((4, 4, 4), ())
    """
    _, _, sizes = shape.partition(" ")
    return tuple(map(int, sizes.split("x"))) if sizes else ()


UNITS: dict[str, tuple[Callable[[object], bool], str]] = {
    "bytes": (_is_count, "a whole number above 0"),
    "bytes/s": (_is_number, "a number above 0"),
    "flop/s": (_is_number, "a number above 0"),
    "s": (_is_time, "a number above 0, or two of them, the least and the most"),
    "count": (_is_count, "a whole number above 0"),
    "counts": (_is_ascending, "a list of whole numbers above 0, ascending"),
    "magnitude": (_is_number, "a number above 0"),
    "times": (_is_number, "a number above 0"),
    "W": (_is_number, "a number above 0"),
    "USD/h": (_is_number, "a number above 0"),
    "dtypes": (_are_dtypes, f"a list of different dtypes of {', '.join(DTYPES)}"),
    "yes or no": (lambda value: isinstance(value, bool), "true or false"),
    "shape": (
        lambda value: isinstance(value, str) and bool(re.fullmatch(_SHAPE, value)),
        "'switch', or 'torus 4x4', 'ring 12', 'line 6'",
    ),
    "name": (lambda value: isinstance(value, str) and bool(value.strip()), "a text"),
}
"""For each unit whether a value is one, and what a value must be."""

MEASURED = ("bytes", "bytes/s", "flop/s", "s", "W", "USD/h", "times")
"""The units that are said with a value; the others say what kind of value it is."""

_SHAPE = r"switch|(torus|ring|line) [1-9]\d*(x[1-9]\d*)*"

_PRINTED = re.compile(r"(?:(?P<times>[\d,]+) x )?(?P<number>[\d,]+(?:\.\d+)?) (?P<unit>\S+)")

_FACTORS = {
    **{prefix + "B": ("bytes", 10**power) for prefix, power in (("k", 3), ("M", 6), ("G", 9), ("T", 12))},
    **{prefix + "iB": ("bytes", 2**power) for prefix, power in (("K", 10), ("M", 20), ("G", 30), ("T", 40))},
    **{prefix + "FLOPS": ("flop/s", 10**power) for prefix, power in (("T", 12), ("P", 15))},
    "us": ("s", Fraction(1, 10**6)),
    "W": ("W", 1),
    "kW": ("W", 1000),
}
_FACTORS |= {f"{name}/s": ("bytes/s", factor) for name, (unit, factor) in _FACTORS.items() if unit == "bytes"}
_FACTORS["Gbps"] = ("bytes/s", Fraction(10**9, 8))


def read_printed(text: str) -> tuple[str, Fraction] | None:
    """Return the unit and the value of what a source prints, or None if it is not a number and a unit.

    >>> read_printed("96 GiB") == ("bytes", 96 * 2**30)
    True
    >>> read_printed("32 x 100 Gbps") == ("bytes/s", 400 * 10**9)
    True
    """
    found = _PRINTED.fullmatch(text)
    if not found or found["unit"] not in _FACTORS:
        return None
    unit, factor = _FACTORS[found["unit"]]
    times = int((found["times"] or "1").replace(",", ""))
    return unit, times * Fraction(found["number"].replace(",", "")) * factor


def is_same(value: object, printed: Fraction) -> bool:
    """Return whether a value in a base unit is what was printed; decimals that binary lacks are let pass."""
    return isinstance(value, (int, float)) and abs(Fraction(value) - printed) <= printed / 10**12
