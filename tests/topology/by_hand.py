"""What an order of devices takes, counted link by link: slow, and easy to see through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from devices.topology import Topology

Pairs = tuple[Mapping[tuple[int, int], tuple[Mapping[tuple[str, str], int], int]], Fraction]


def said(topology: Topology, shape: Sequence[int] | None = None) -> Pairs:
    """Return for each two devices what a byte takes of each link, and how long it takes if nothing else is said.

    Both are whole numbers of the fraction of a second that is returned too. It walks over the links one after the
    other: slow, and easy to see through.

    Args:
        topology: the topology.
        shape: of a torus or a grid, along the first axis of which bytes go first.
    """
    names = [node.name for node in topology.devices]
    rates = {(link.source, link.target): Fraction(link.bandwidth or 0) for link in topology.links}
    found = {}
    for one, other in itertools.permutations(range(len(names)), 2):
        ways = walks(topology, names[one], names[other], shape)
        load: dict[tuple[str, str], Fraction] = {}
        for way in ways:
            part = Fraction(1, math.prod(split for _, split in way))
            for link, _ in way:
                load[link] = load.get(link, Fraction(0)) + part / rates[link]
        found[one, other] = load, min(alone([link for link, _ in way], rates, names) for way in ways)
    whole = math.lcm(*(each.denominator for load, seconds in found.values() for each in (*load.values(), seconds)))
    return {
        ends: ({link: int(part * whole) for link, part in load.items()}, int(seconds * whole))
        for ends, (load, seconds) in found.items()
    }, Fraction(1, whole)


def alone(way: Sequence[tuple[str, str]], rates: Mapping[tuple[str, str], Fraction], names: Sequence[str]) -> Fraction:
    """Return how long a byte is on a way, if each device has it all before it goes on: from device to device."""
    total, since = Fraction(0), []
    for link in way:
        since.append(1 / rates[link])
        if link[1] in names:
            total += max(since[0], since[-1])
            since = []
    return total


def busiest(pairs: Pairs, sizes: Sequence[int], order: Sequence[int], traffic: Sequence[int]) -> Fraction:
    """Return the seconds of all axes."""
    between, unit = pairs
    total = Fraction(0)
    for axis, length in enumerate(sizes):
        load: dict[tuple[str, str], int] = {}
        slowest = 0
        stride = math.prod(sizes[axis + 1 :])
        for place in range(math.prod(sizes)):
            at = place // stride % length
            for step in (1, -1) if length > 1 else ():
                to = place + ((at + step) % length - at) * stride
                parts, seconds = between[order[place], order[to]]
                # To the other of a ring of two it says both halves.
                slowest = max(slowest, seconds * (2 if length == 2 else 1))
                for link, part in parts.items():
                    load[link] = load.get(link, 0) + part
        share = Fraction((length - 1) * traffic[axis], length)
        total += max([slowest, *load.values()]) * share * unit
    return total


def walks(
    topology: Topology, source: str, target: str, shape: Sequence[int] | None
) -> list[list[tuple[tuple[str, str], int]]]:
    """Return all ways that bytes go: each its links, and among how many the bytes are split where each begins."""
    rates = {(link.source, link.target): Fraction(link.bandwidth or 0) for link in topology.links}
    far = {target: (0, Fraction(0))}
    edge = [target]
    while edge:
        reached: dict[str, tuple[int, Fraction]] = {}
        for (one, other), rate in rates.items():
            if other in edge and one not in far:
                there = far[other][0] + 1, far[other][1] + 1 / rate
                reached[one] = min(reached.get(one, there), there)
        far |= reached
        edge = list(reached)

    def axis(one: str, other: str) -> int:
        if shape is None:
            return 0
        apart = abs(int(one.rpartition(":")[2]) - int(other.rpartition(":")[2]))
        return min(place for place in range(len(shape)) if apart >= math.prod(shape[place + 1 :]))

    def on(node: str) -> list[list[tuple[tuple[str, str], int]]]:
        if node == target:
            return [[]]
        hops, seconds = far[node]
        nearer = [
            end
            for (begin, end), rate in rates.items()
            if begin == node and far[end] == (hops - 1, seconds - 1 / rate)
        ]  # fmt: skip
        first = min(axis(node, end) for end in nearer)
        nearer = [end for end in nearer if axis(node, end) == first]
        return [[((node, end), len(nearer)), *rest] for end in nearer for rest in on(end)]

    return on(source)
