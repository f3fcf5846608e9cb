"""Small random topologies, and the worst cuts of them by trying all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from hypothesis import strategies as st

from devices.topology import Link, Node, Topology


@st.composite
def small_topologies(draw: st.DrawFn, devices: int = 5, switches: int = 2, symmetric: bool | None = None) -> Topology:
    """Draw a topology in which a ring through all nodes, in a random order, makes sure that all are connected."""
    count = draw(st.integers(2, devices))
    nodes = [Node(f"d:{place}") for place in range(count)]
    nodes += [Node(f"s:{place}", "switch") for place in range(draw(st.integers(0, switches)))]
    is_symmetric = draw(st.booleans()) if symmetric is None else symmetric
    rates = st.integers(1, 6)
    around = draw(st.permutations(nodes))
    pairs = {(one.name, other.name) for one, other in zip(around, [*around[1:], around[0]], strict=True)}
    every = [(one.name, other.name) for one, other in itertools.permutations(nodes, 2)]
    pairs |= set(draw(st.lists(st.sampled_from(every), max_size=8)))
    links = {}
    for pair in sorted(pairs):
        links[pair] = draw(rates)
        if is_symmetric:
            links[pair[::-1]] = links[pair]
    return Topology(nodes, [Link(source, target, "", rate) for (source, target), rate in links.items()])


def subsets(names: Sequence[str]) -> Iterator[set[str]]:
    for size in range(len(names) + 1):
        yield from map(set, itertools.combinations(names, size))


def leaving(topology: Topology, side: set[str]) -> Fraction:
    return Fraction(
        sum(link.bandwidth or 0 for link in topology.links if link.source in side and link.target not in side)
    )


def least_leaving(topology: Topology, devices: set[str]) -> Fraction:
    """Return the least capacity that leaves some devices, the switches being on either side."""
    switches = [node.name for node in topology.nodes if not node.is_device]
    return min(leaving(topology, devices | some) for some in subsets(switches))


def partitions(names: Sequence[str]) -> Iterator[list[set[str]]]:
    if not names:
        yield []
        return
    first, *rest = names
    for parts in partitions(rest):
        yield [{first}, *parts]
        for place in range(len(parts)):
            yield [*parts[:place], parts[place] | {first}, *parts[place + 1 :]]
