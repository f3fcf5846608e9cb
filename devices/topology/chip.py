"""What a rank of a target computes, holds and costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from devices.catalogue import Target, load
from devices.errors import ArgumentError, TargetNotFoundError, TopologyError
from devices.topology.estimate import Interval
from devices.topology.machine import Machine, is_speculative, machine_of
from devices.topology.model import RATES

EFFICIENCY = Interval(0.35, 0.5, 0.7)
"""How much of a chip's dense FLOPS the products of matrices reach: assumed."""

STREAMING = Interval(0.6, 0.75, 0.9)
"""How much of the bandwidth of its memory is reached: assumed."""

USABLE = 0.92
"""How much of its memory a program can have: assumed; the rest is of the driver, the collectives and fragmentation."""


@final
@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a target: a GPU, or a core of a Neuron chip with its share of the chip.

    Args:
        target: the name of the target.
        machine: how it reaches the others.
        flops: what it computes in a second, if nothing hindered it.
        bandwidth: bytes per second of its memory.
        memory: its bytes.
        watts: what it takes, None where that is not known.
        price: what an hour of it costs, None where that is not known.
        speculative: whether that is announced or assumed.
        missing: what is not known.
    """

    target: str
    machine: Machine
    flops: float
    bandwidth: float
    memory: float
    watts: float | None
    price: float | None
    speculative: bool
    missing: tuple[str, ...]


def check_given(watts: float | None, price: float | None) -> None:
    """Refuse what no chip takes or costs."""
    for name, value in (("watts", watts), ("price", price)):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < math.inf):
            raise ArgumentError(f"`{name}` of a chip is a number above 0, got {value!r}")


def rank_of(on: str | Target, dtype: str, watts: float | None = None, price: float | None = None) -> Rank:
    """Return what the catalogue says of a rank.

    Args:
        on: a target, or its name.
        dtype: what it computes in.
        watts: what a chip takes; the catalogue's figure if not said.
        price: what an hour of a chip costs; the catalogue's figure if not said.

    Raises:
        TopologyError: a figure is not known, which it names.
    """
    target = load(on) if isinstance(on, str) else on
    if not isinstance(target, Target):
        raise ArgumentError(f"a model runs on a target of the catalogue, not on {on!r}")
    check_given(watts, price)
    chip = target
    while chip.of is not None:
        chip = chip.of
    share = target.limits.ranks_per_chip or 1
    needed = {
        name: _needed(chip, name, why)
        for name, why in ((RATES[dtype], f"computing in {dtype}"), ("memory_bandwidth", "reading the weights"))
    }
    memory = target.limits.memory_per_rank
    if memory is None:
        raise TopologyError(f"{target.name}: the memory of a rank is not known, and whether a model fits depends on it")
    watts = _known(chip, "power") if watts is None else watts
    price = _per_chip_hour(target) if price is None else price
    missing = [
        text
        for text, value in (
            (f"power of {chip.name}: say `watts`, what a chip takes", watts),
            (f"price of {target.name}: say `price`, what an hour of a chip costs", price),
        )
        if value is None
    ]
    return Rank(
        target=target.name,
        machine=machine_of(target),
        flops=needed[RATES[dtype]] / share,
        bandwidth=needed["memory_bandwidth"] / share,
        memory=float(memory),
        watts=None if watts is None else watts / share,
        price=None if price is None else price / share,
        speculative=is_speculative(target),
        missing=tuple(missing),
    )


def _needed(chip: Target, name: str, why: str) -> float:
    figure = chip.figures[name]
    if not isinstance(figure.value, (int, float)):
        raise TopologyError(f"{chip.name}: figure {name} is not known ({figure.reason}), and {why} depends on it")
    return float(figure.value)


def _known(target: Target, name: str) -> float | None:
    try:
        value = target.figure(name).value
    except TargetNotFoundError:
        return None
    return float(value) if isinstance(value, (int, float)) else None


def _per_chip_hour(target: Target) -> float | None:
    """Return what an hour costs for each chip, where the catalogue has a price of the target or of a part of it."""
    chips, part = 1, target
    parts: list[tuple[Target, int]] = []
    while part.of is not None:
        parts.append((part, 0))
        part = part.of
    for place in reversed(range(len(parts))):
        chips *= parts[place][0].members
        parts[place] = parts[place][0], chips
    for each, count in parts:
        figure = each.figures.get("price")
        if figure is not None and isinstance(figure.value, (int, float)):
            return float(figure.value) / count
    return None
