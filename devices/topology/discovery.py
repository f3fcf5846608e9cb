"""The topology of this host, put together from what the backends and the plugins know."""

from __future__ import annotations

from devices import _registry
from devices.roster.answers import Links
from devices.topology.graph import Link, Node, Topology


def discover() -> Topology:
    """Return what is known of this host: every present backend's topology, and the links that plugins know of.

    A backend that knows of none gives its devices, and the links that its capabilities state. What a broken plugin
    would have said is left out; `devices doctor` says so.

    Raises:
        TopologyError: two of them contradict each other.

    >>> [node.name for node in discover().devices if node.name.startswith("cpu")]
    ['cpu:0']
    """
    found = Topology([], name="this host")
    for name, said in _registry.topologies().items():
        own = Topology([Node(str(device)) for device in _registry.devices_of(name)])
        found = found.union(own.union(_of_links(_registry.links_of(name)) if said is None else said))
    return found.union(_of_links(_registry.links_of_plugins()))


def _of_links(links: Links) -> Topology:
    ends = dict.fromkeys(end for label, some in links.items() for end in (label, *(link.peer for link in some)))
    return Topology(
        [Node(end) for end in ends],
        [
            Link(label, link.peer, link.kind, link.bandwidth, link.latency)
            for label, some in links.items()
            for link in some
        ],
    )
