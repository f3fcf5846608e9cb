"""The graph: nodes, links that go one way, and the topology that they make, checked when it is made."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, final

from devices.errors import TopologyError, did_you_mean

KINDS = ("device", "switch", "nic", "host")
"""The kinds of nodes. Devices compute and store; the others pass on what comes in."""

Value = str | int | float | bool | tuple["Value", ...]
"""What an attribute of a node can be."""


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One node of a topology.

    Args:
        name: unique in its topology; a device's is that which `str(device)` prints, "cuda:0".
        kind: one of `KINDS`.
        attributes: what else is known of it: texts, numbers, or tuples of those. A switch with `reduces=True` can
            combine what comes in, as NVLS and SHARP do.

    >>> Node("nvswitch", "switch", {"reduces": True}).reduces
    True
    """

    name: str
    kind: str = "device"
    attributes: Mapping[str, Value] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TopologyError(f"a node's name is a text that is not empty, got {self.name!r}")
        if self.kind not in KINDS:
            hint = did_you_mean(str(self.kind), KINDS)
            raise TopologyError(f"node {self.name!r} is of kind {self.kind!r}, none of {', '.join(KINDS)}{hint}")
        if not isinstance(self.attributes, Mapping):
            raise TopologyError(f"node {self.name!r} has attributes {self.attributes!r}, which are no mapping")
        plain = {key: _plain(self.name, key, value) for key, value in self.attributes.items()}
        object.__setattr__(self, "attributes", MappingProxyType(plain))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can be neither copied nor sent to another process.
        return Node, (self.name, self.kind, dict(self.attributes))

    @property
    def is_device(self) -> bool:
        """Whether it is an endpoint: it has a rank, and keeps data."""
        return self.kind == "device"

    @property
    def reduces(self) -> bool:
        """Whether it is a switch that can combine what comes in."""
        return self.kind == "switch" and self.attributes.get("reduces") is True


@final
@dataclass(frozen=True, slots=True)
class Link:
    """All that goes one way from one node to another over cables of one kind.

    Args:
        source: the name of the node that it leaves.
        target: the name of the node that it enters.
        kind: what it is, for instance "nvlink", "pcie" or "efa".
        bandwidth: bytes per second; None when unknown.
        latency: seconds; None when unknown.
        origin: where the figures are from, for instance a source of the catalogue; "" when nobody said.
        status: what kind of figures they are: one of `devices.catalogue.STATUSES`, or "" when nobody said.
    """

    source: str
    target: str
    kind: str = ""
    bandwidth: int | float | None = None
    latency: int | float | None = None
    origin: str = ""
    status: str = ""

    def __post_init__(self) -> None:
        for what in ("source", "target", "kind", "origin", "status"):
            if not isinstance(getattr(self, what), str):
                raise TopologyError(f"{self}: its {what} is {getattr(self, what)!r}, which is no text")
        if self.source == self.target:
            raise TopologyError(f"{self}: a link leads to another node")
        for what, lowest in (("bandwidth", "more than 0"), ("latency", "at least 0")):
            value = getattr(self, what)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0 or (what == "bandwidth" and value == 0):
                raise TopologyError(f"{self}: its {what} is {value!r}; it must be a number of {lowest}, or None")

    def __str__(self) -> str:
        return f"link {self.source!r} -> {self.target!r}" + (f" of kind {self.kind!r}" if self.kind else "")

    @property
    def reverse(self) -> Link:
        """The link of the same figures in the other direction."""
        return Link(self.target, self.source, self.kind, self.bandwidth, self.latency, self.origin, self.status)


@final
@dataclass(frozen=True)
class Topology:
    """Devices, switches and the links between them.

    The devices, in the order of `nodes`, are the ranks 0, 1, ... that bounds and schedules speak of. A link that is
    said twice is kept once, a figure that only one of the two has included.

    Args:
        nodes: in any order; names are unique.
        links: between those nodes, each in one direction.
        name: what the whole is called.

    Raises:
        TopologyError: two nodes of a name, a link from or to no node, or two links that contradict each other.

    >>> pair = Topology([Node("cpu:0"), Node("cpu:1")], both(Link("cpu:0", "cpu:1", "pcie", bandwidth=32e9)))
    >>> pair.neighbours("cpu:1")
    ('cpu:0',)
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    name: str = ""

    def __init__(self, nodes: Iterable[Node], links: Iterable[Link] = (), name: str = "") -> None:
        object.__setattr__(self, "nodes", tuple(nodes))
        object.__setattr__(self, "name", name)
        places: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            if not isinstance(node, Node):
                raise TopologyError(f"{node!r} is no devices.topology.Node")
            if node.name in places:
                raise TopologyError(f"two nodes are named {node.name!r}")
            places[node.name] = place
        kept: dict[tuple[int, int, str], Link] = {}
        for link in links:
            if not isinstance(link, Link):
                raise TopologyError(f"{link!r} is no devices.topology.Link")
            for end in (link.source, link.target):
                if end not in places:
                    raise TopologyError(f"{link}: there is no node {end!r}{did_you_mean(end, places)}")
            key = places[link.source], places[link.target], link.kind
            kept[key] = _agreed(kept[key], link) if key in kept else link
        object.__setattr__(self, "links", tuple(kept[key] for key in sorted(kept)))

    def __str__(self) -> str:
        return f"topology {self.name!r}" if self.name else f"a topology of {len(self.devices)} devices"

    @cached_property
    def devices(self) -> tuple[Node, ...]:
        """The endpoints, in rank order."""
        return tuple(node for node in self.nodes if node.is_device)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _leaving(self) -> dict[str, tuple[Link, ...]]:
        found: dict[str, list[Link]] = {node.name: [] for node in self.nodes}
        for link in self.links:
            found[link.source].append(link)
        return {name: tuple(links) for name, links in found.items()}

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
            TopologyError: there is none.
        """
        if name not in self._by_name:
            raise TopologyError(f"{self} has no node {name!r}{did_you_mean(name, self._by_name)}")
        return self._by_name[name]

    def links_from(self, name: str) -> tuple[Link, ...]:
        """Return the links that leave a node."""
        return self._leaving[self.node(name).name]

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes that a node has a link to, in the order of `nodes`."""
        return tuple(dict.fromkeys(link.target for link in self.links_from(name)))

    def unreachable(self, source: str) -> tuple[str, ...]:
        """Return the names of the devices that no path leads to from a node."""
        seen, to_look_at = {self.node(source).name}, deque([source])
        while to_look_at:
            for link in self._leaving[to_look_at.popleft()]:
                if link.target not in seen:
                    seen.add(link.target)
                    to_look_at.append(link.target)
        return tuple(node.name for node in self.devices if node.name not in seen)

    def require_connected(self) -> None:
        """Check that there is a path from every device to every other.

        Raises:
            TopologyError: there is none between two, which it names; or there is no device at all.
        """
        if not self.devices:
            raise TopologyError(f"{self} has no devices")
        first = self.devices[0].name
        if lost := self.unreachable(first):
            raise TopologyError(f"{self} is not connected: no path leads from {first!r} to {_some(lost)}")
        if lost := self.reversed().unreachable(first):
            raise TopologyError(f"{self} is not connected: no path leads to {first!r} from {_some(lost)}")

    def require_bandwidths(self) -> None:
        """Check that every link's bandwidth is known.

        Raises:
            TopologyError: it names the links whose bandwidth is not.
        """
        if unknown := [f"{link.source!r} -> {link.target!r}" for link in self.links if link.bandwidth is None]:
            raise TopologyError(
                f"{self}: the bandwidth of {_some(unknown, quoted=True)} is not known, and the answer depends on it; "
                "give those links a `bandwidth` in bytes per second, in one direction"
            )

    def reversed(self) -> Topology:
        """Return the topology whose links go the other way."""
        return Topology(self.nodes, [link.reverse for link in self.links], self.name)

    def union(self, other: Topology, name: str = "") -> Topology:
        """Return the nodes and links of both, those that both have kept once.

        Raises:
            TopologyError: the two contradict each other in a node or a link.
        """
        nodes = dict(self._by_name)
        for node in other.nodes:
            known = nodes.setdefault(node.name, node)
            if known.kind != node.kind:
                raise TopologyError(f"node {node.name!r} is of kind {known.kind!r} and of kind {node.kind!r}")
            for key in known.attributes.keys() & node.attributes.keys():
                if known.attributes[key] != node.attributes[key]:
                    raise TopologyError(
                        f"node {node.name!r} has {key} = {known.attributes[key]!r} and {node.attributes[key]!r}"
                    )
            nodes[node.name] = Node(node.name, node.kind, {**known.attributes, **node.attributes})
        return Topology(nodes.values(), (*self.links, *other.links), name or self.name or other.name)


def both(*links: Link) -> tuple[Link, ...]:
    """Return links and their reverses: cables that are as fast in one direction as in the other."""
    return tuple(way for link in links for way in (link, link.reverse))


def _plain(node: str, key: object, value: Any) -> Value:
    if isinstance(key, str):
        if isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, (list, tuple)):
            return tuple(_plain(node, key, each) for each in value)
    raise TopologyError(f"node {node!r} has an attribute {key!r} = {value!r}; texts, numbers and tuples of them can be")


def _agreed(one: Link, other: Link) -> Link:
    """Return what two links between the same nodes say together."""
    figures: dict[str, Any] = {}
    for what in ("bandwidth", "latency", "origin", "status"):
        mine, yours = getattr(one, what), getattr(other, what)
        if what in ("bandwidth", "latency") and mine is not None and yours is not None and mine != yours:
            raise TopologyError(
                f"{one} has {what} {mine!r} and {yours!r}; links that are side by side need a `kind` each"
            )
        figures[what] = yours if mine is None or mine == "" else mine
    return Link(one.source, one.target, one.kind, **figures)


def _some(names: Iterable[str], quoted: bool = False) -> str:
    listed = [name if quoted else repr(name) for name in names]
    rest = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + rest
