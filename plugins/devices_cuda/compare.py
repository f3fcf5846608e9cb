"""Whether two descriptions of one machine agree: NVML's and that of `nvidia-smi topo -m`, say."""

from __future__ import annotations

from dataclasses import replace

from devices_cuda.machine import Gpu, Machine
from devices_cuda.nearness import ancestor


def disagreements(one: Machine, other: Machine) -> tuple[str, ...]:
    """Return in words what one says and the other contradicts; what only one of them says is no contradiction."""
    if len(one.gpus) != len(other.gpus):
        return (f"{one.source} has {len(one.gpus)} GPUs, {other.source} {len(other.gpus)}",)
    found: list[str] = []

    def compare(who: str, what: str, mine: object, yours: object) -> None:
        if mine is not None and yours is not None and mine != yours:
            found.append(f"{who}: {what} is {mine} by {one.source} and {yours} by {other.source}")

    for mine, yours in zip(one.gpus, other.gpus, strict=True):
        for what in ("uuid", "pci", "memory", "capability", "numa", "memory_numa", "mig"):
            compare(f"GPU {mine.index}", what, getattr(mine, what), getattr(yours, what))
    for first in range(len(one.gpus)):
        for second in range(first + 1, len(one.gpus)):
            who = f"GPUs {first} and {second}"
            compare(who, "their number of NVLinks", nvlinks(one, first, second), nvlinks(other, first, second))
            compare(who, "what is between them on PCI", _ancestor(one, first, second), _ancestor(other, first, second))
    return tuple(found)


def completed(one: Machine, other: Machine) -> Machine:
    """Return `one` with what only `other`, which does not contradict it, says of NUMA nodes and of pairs of GPUs."""
    gpus = tuple(
        replace(
            mine,
            numa=yours.numa if mine.numa is None else mine.numa,
            memory_numa=yours.memory_numa if mine.memory_numa is None else mine.memory_numa,
        )
        for mine, yours in zip(one.gpus, other.gpus, strict=True)
    )
    pairs = {(pair.first, pair.second): pair for pair in other.pairs}
    for pair in one.pairs:
        known = pairs.get((pair.first, pair.second), pair)
        pairs[pair.first, pair.second] = replace(
            pair,
            nvlinks=known.nvlinks if pair.nvlinks is None else pair.nvlinks,
            ancestor=known.ancestor if pair.ancestor is None else pair.ancestor,
        )
    return replace(one, gpus=gpus, pairs=tuple(pairs[key] for key in sorted(pairs)))


def nvlinks(machine: Machine, first: int, second: int) -> int | None:
    """Return the number of NVLinks between two GPUs, as `nvidia-smi` counts them: through switches or not."""
    pair = machine.pair(first, second)
    if pair is not None and pair.nvlinks is not None:
        return pair.nvlinks
    one, other = machine.gpus[first], machine.gpus[second]
    if (
        one.nvlinks is None
        or other.nvlinks is None
        or any(link.remote is None for link in (*one.nvlinks, *other.nvlinks))
    ):
        return None
    if direct := sum(link.peer == other.pci for link in one.nvlinks if link.remote == "gpu"):
        return direct
    switched = min(_to_switches(one), _to_switches(other))
    # Two on switches may still be on different ones.
    return None if switched and (pair is None or pair.over_nvlink is not True) else switched


def _to_switches(gpu: Gpu) -> int:
    return sum(link.remote == "switch" for link in gpu.nvlinks or ())


def _ancestor(machine: Machine, first: int, second: int) -> str | None:
    pair = machine.pair(first, second)
    said = None if pair is None else pair.ancestor
    return said if said is not None else ancestor(machine.gpus[first], machine.gpus[second])
