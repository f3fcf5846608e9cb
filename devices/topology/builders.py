"""Topologies of the usual shapes.

Bandwidths are bytes per second in one direction, latencies seconds per link.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from devices.errors import TopologyError
from devices.topology.graph import Link, Node, Topology, both

Number = int | float


def torus(
    shape: Sequence[int],
    bandwidth: Number | None = None,
    latency: Number | None = None,
    *,
    wrap: bool | Sequence[bool] = True,
    device: str = "device",
    kind: str = "torus",
) -> Topology:
    """Return a torus, its devices in row-major order.

    In an axis of length 2 that wraps, two cables join the two devices: one link of twice the bandwidth.

    Args:
        shape: the length of each axis.
        bandwidth: of one cable.
        latency: of one cable.
        wrap: whether the ends of the axes are joined, of all or of each.
        device: the first half of the devices' names.
        kind: of the links.
    """
    lengths = tuple(shape)
    for length in lengths:
        _count("the length of an axis", length)
    wraps = (wrap,) * len(lengths) if isinstance(wrap, bool) else tuple(wrap)
    if len(wraps) != len(lengths):
        raise TopologyError(f"a torus of {len(lengths)} axes needs as many in `wrap`, got {len(wraps)}")
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    links: list[Link] = []
    for place, at in enumerate(itertools.product(*map(range, lengths))):
        for axis, length in enumerate(lengths):
            is_end = at[axis] == length - 1
            if length == 1 or (is_end and (length == 2 or not wraps[axis])):
                continue
            other = place + strides[axis] * (1 - length if is_end else 1)
            cables = 2 if length == 2 and wraps[axis] else 1
            rate = None if bandwidth is None else bandwidth * cables
            links += both(Link(f"{device}:{place}", f"{device}:{other}", kind, rate, latency))
    return Topology(_devices(device, math.prod(lengths)), links)


def ring(
    size: int,
    bandwidth: Number | None = None,
    latency: Number | None = None,
    *,
    device: str = "device",
    kind: str = "ring",
) -> Topology:
    """Return a ring, each device joined to the next."""
    return torus((size,), bandwidth, latency, device=device, kind=kind)


def switch(
    size: int,
    bandwidth: Number | Sequence[Number] | None = None,
    latency: Number | None = None,
    *,
    reduces: bool = False,
    device: str = "device",
    name: str = "switch",
    kind: str = "switch",
) -> Topology:
    """Return devices on one switch.

    Args:
        size: how many.
        bandwidth: of each device to the switch and back, of all or one of each.
        latency: of one such link.
        reduces: whether the switch can combine what comes in.
        device: the first half of the devices' names.
        name: the switch's.
        kind: of the links.
    """
    nodes = _devices(device, size)
    rates = _each(bandwidth, size)
    middle = Node(name, "switch", {"reduces": True} if reduces else {})
    links = both(*(Link(node.name, name, kind, rate, latency) for node, rate in zip(nodes, rates, strict=True)))
    return Topology([*nodes, middle], links)


def fat_tree(
    leaves: int,
    per_leaf: int,
    spines: int,
    bandwidth: Number | None = None,
    uplink: Number | None = None,
    latency: Number | None = None,
    *,
    device: str = "device",
    kind: str = "network",
) -> Topology:
    """Return two levels of switches: devices on leaves, each leaf joined to each spine.

    Args:
        leaves: how many leaves.
        per_leaf: the devices of a leaf.
        spines: how many spines.
        bandwidth: of a device to its leaf.
        uplink: of a leaf to one spine; None for one that does not hold up the leaf's devices.
        latency: of one link.
        device: the first half of the devices' names.
        kind: of the links.
    """
    _count("the number of leaves", leaves)
    _count("the number of spines", spines)
    nodes = _devices(device, leaves * per_leaf)
    if uplink is None and bandwidth is not None:
        total = bandwidth * per_leaf
        uplink = total // spines if isinstance(total, int) and total % spines == 0 else total / spines
    links = [Link(node.name, f"leaf:{place // per_leaf}", kind, bandwidth, latency) for place, node in enumerate(nodes)]
    links += [
        Link(f"leaf:{leaf}", f"spine:{spine}", kind, uplink, latency)
        for leaf, spine in itertools.product(range(leaves), range(spines))
    ]
    switches = [Node(f"leaf:{leaf}", "switch") for leaf in range(leaves)]
    switches += [Node(f"spine:{spine}", "switch") for spine in range(spines)]
    return Topology([*nodes, *switches], both(*links))


def machines(
    count: int,
    size: int,
    inside: Number | None = None,
    across: Number | None = None,
    latency: Number | None = None,
    *,
    device: str = "device",
) -> Topology:
    """Return machines whose devices share a switch inside, all joined by one network; two DGX, for instance.

    Args:
        count: how many machines.
        size: the devices of each.
        inside: the bandwidth of a device to its machine's switch.
        across: the bandwidth of a device to the network.
        latency: of one link.
        device: the first half of the devices' names.
    """
    nodes, links = _islands(count, size, inside, latency, device)
    links += [Link(f"{device}:{place}", "network", "network", across, latency) for place in range(count * size)]
    return Topology([*nodes, Node("network", "switch")], both(*links))


def rails(
    count: int,
    size: int,
    inside: Number | None = None,
    rail: Number | None = None,
    latency: Number | None = None,
    *,
    device: str = "device",
) -> Topology:
    """Return machines whose devices share a switch inside, with a switch for the first devices of all, the second, ...

    Args:
        count: how many machines.
        size: the devices of each, which is also the number of rails.
        inside: the bandwidth of a device to its machine's switch.
        rail: the bandwidth of a device to its rail.
        latency: of one link.
        device: the first half of the devices' names.
    """
    nodes, links = _islands(count, size, inside, latency, device)
    links += [
        Link(f"{device}:{place}", f"rail:{place % size}", "network", rail, latency) for place in range(count * size)
    ]
    return Topology([*nodes, *(Node(f"rail:{place}", "switch") for place in range(size))], both(*links))


def networked(
    parts: Sequence[Topology],
    bandwidths: Sequence[Number | None],
    latency: Number | None = None,
    *,
    name: str = "network",
) -> Topology:
    """Return several topologies whose devices all reach one more switch.

    Args:
        parts: topologies that share no names.
        bandwidths: of one device of each part to the network and back.
        latency: of one such link.
        name: the switch's.

    >>> mixed = networked([switch(8, 450e9, device="cuda"), torus((2, 4), 64e9, device="neuron")], [50e9, 25e9])
    >>> len(mixed.devices)
    16
    """
    if len(bandwidths) != len(parts):
        raise TopologyError(f"{len(parts)} parts of a network need a bandwidth each, got {len(bandwidths)}")
    nodes = [node for part in parts for node in part.nodes]
    links = [link for part in parts for link in part.links]
    for part, bandwidth in zip(parts, bandwidths, strict=True):
        for node in part.devices:
            links += both(Link(node.name, name, "network", bandwidth, latency))
    return Topology([*nodes, Node(name, "switch")], links)


def _islands(
    count: int, size: int, inside: Number | None, latency: Number | None, device: str
) -> tuple[list[Node], list[Link]]:
    _count("the number of machines", count)
    nodes = _devices(device, count * size)
    links = [Link(node.name, f"machine:{place // size}", "switch", inside, latency) for place, node in enumerate(nodes)]
    return [*nodes, *(Node(f"machine:{place}", "switch") for place in range(count))], links


def _devices(device: str, size: int) -> list[Node]:
    _count("the number of devices", size)
    return [Node(f"{device}:{place}") for place in range(size)]


def _each(bandwidth: Number | Sequence[Number] | None, size: int) -> Iterator[Number | None]:
    if bandwidth is None or isinstance(bandwidth, (int, float)):
        return itertools.repeat(bandwidth, size)
    if len(bandwidth) != size:
        raise TopologyError(f"a switch of {size} devices needs one bandwidth or {size}, got {len(bandwidth)}")
    return iter(bandwidth)


def _count(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TopologyError(f"{what} is a whole number of at least 1, got {value!r}")
