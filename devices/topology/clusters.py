"""Equal topologies on one network, held as one of them and a number: a million chips are as small as 144."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import final, overload

from devices.catalogue import Target
from devices.errors import TopologyError
from devices.topology.graph import Link, Node, Topology, both

HELD = 8192
"""The nodes and links of clusters of more devices are not made."""

NETWORK = "network"
"""The node that joins the members."""


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Members that are alike, each device of which reaches one network.

    It answers what a `Topology` does of one device or of the devices together. `nodes` and `links`, which bounds and
    schedules need, are there in small clusters; of a large one `part` returns as many members as are asked for.

    Args:
        name: what it is called.
        member: one of the members; its devices are "device:0", "device:1" and so on, or of another such name.
        times: how many members there are.
        network: the link of a device to the network and back, as the first device has it. The network itself is one
            switch, on which nobody waits: what large ones are made of is not known.
        target: what it is the graph of.
    """

    name: str
    member: Topology
    times: int
    network: Link
    target: Target = field(hash=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.times, int) or isinstance(self.times, bool) or self.times < 1:
            raise TopologyError(f"a cluster has a whole number of members of at least 1, got {self.times!r}")
        for place, node in enumerate(self.member.devices):
            if node.name != f"{self.prefix}:{place}":
                raise TopologyError(f"device {place} of a member is to be {self.prefix}:{place}, not {node.name!r}")

    def __str__(self) -> str:
        return f"topology {self.name!r} of {self.times:,} x {self.member.name!r}"

    @property
    def prefix(self) -> str:
        """The first half of the devices' names."""
        return self.member.devices[0].name.rpartition(":")[0]

    @property
    def devices(self) -> Sequence[Node]:
        """The endpoints, in rank order; each is made when it is asked for."""
        return _Devices(self)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes: the devices, the switches of the members and the network.

        Raises:
            TopologyError: there are too many.
        """
        return self.part(self.times).nodes

    @property
    def links(self) -> tuple[Link, ...]:
        """All links.

        Raises:
            TopologyError: there are too many.
        """
        return self.part(self.times).links

    def part(self, times: int) -> Topology:
        """Return the topology of the first members and the network.

        Raises:
            TopologyError: it has not so many, or they are too many to be made.

        >>> from devices.topology import of_target
        >>> len(of_target("trainium3-ultracluster").part(2).devices)
        288
        """
        if not isinstance(times, int) or isinstance(times, bool) or not 0 < times <= self.times:
            raise TopologyError(f"a part of {self} has 1 to {self.times:,} of its members, got {times!r}")
        if times * len(self.member.devices) > HELD:
            raise TopologyError(
                f"the nodes and links of {times * len(self.member.devices):,} devices of {self.name!r} are not made, "
                f"those of up to {HELD:,} are: `part(2)` is the topology of 2 of its {self.times:,} members"
            )
        nodes = [self._node(node, copy) for copy in range(times) for node in self.member.nodes]
        links = [self._link(link, copy) for copy in range(times) for link in self.member.links]
        wires = [self._wire(node.name) for node in nodes if node.is_device]
        nodes.sort(key=lambda node: not node.is_device)
        name = self.name if times == self.times else f"{times} of {self.name}"
        return Topology([*nodes, Node(NETWORK, "switch")], [*links, *both(*wires)], name)

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
            TopologyError: there is none.
        """
        if name == NETWORK:
            return Node(NETWORK, "switch")
        node, copy = self._inside(name)
        return self._node(node, copy)

    def links_from(self, name: str) -> tuple[Link, ...]:
        """Return the links that leave a node.

        Raises:
            TopologyError: there is no such node; or it is the network, and its links are too many.
        """
        if name == NETWORK:
            return self.part(self.times).links_from(name)
        node, copy = self._inside(name)
        found = [self._link(link, copy) for link in self.member.links_from(node.name)]
        return (*found, self._wire(name)) if node.is_device else tuple(found)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes that a node has a link to."""
        return tuple(dict.fromkeys(link.target for link in self.links_from(name)))

    def require_connected(self) -> None:
        """Check that there is a path from every device to every other: there is one, over the network."""
        self.member.require_connected()

    def require_bandwidths(self) -> None:
        """Check that every link's bandwidth is known.

        Raises:
            TopologyError: it names the links whose bandwidth is not.
        """
        self.member.require_bandwidths()
        Topology([Node(self.network.source), Node(NETWORK, "switch")], [self.network], self.name).require_bandwidths()

    def _inside(self, name: str) -> tuple[Node, int]:
        """Return the node of the member that one of the whole is a copy of, and of which copy it is."""
        kind, _, number = name.rpartition(":")
        # Only what is written as names are is one: int() takes signs, spaces and zeros too.
        if number.isdecimal() and number == str(int(number)):
            place, size = int(number), len(self.member.devices)
            if kind == self.prefix and place < self.times * size:
                return self.member.devices[place % size], place // size
            for node in self.member.nodes:
                if node.name == kind and not node.is_device and place < self.times:
                    return node, place
        raise TopologyError(
            f"{self} has no node {name!r}: its devices are {self.prefix}:0 to {self.prefix}:{len(self.devices) - 1}"
        )

    def _named(self, name: str, copy: int) -> str:
        node = self.member.node(name)
        if not node.is_device:
            return f"{name}:{copy}"
        return f"{self.prefix}:{copy * len(self.member.devices) + int(name.rpartition(':')[2])}"

    def _node(self, node: Node, copy: int) -> Node:
        return replace(node, name=self._named(node.name, copy))

    def _link(self, link: Link, copy: int) -> Link:
        return replace(link, source=self._named(link.source, copy), target=self._named(link.target, copy))

    def _wire(self, name: str) -> Link:
        return replace(self.network, source=name)


class _Devices(Sequence[Node]):
    """The devices of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __len__(self) -> int:
        return self._cluster.times * len(self._cluster.member.devices)

    def __iter__(self) -> Iterator[Node]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Node: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Node, ...]: ...
    def __getitem__(self, place: int | slice) -> Node | tuple[Node, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        return self._cluster.node(f"{self._cluster.prefix}:{range(len(self))[place]}")
