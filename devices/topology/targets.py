"""The graph of a target of the catalogue, each link with where its figures are from."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from devices import catalogue
from devices.catalogue import Figure, Target
from devices.errors import ArgumentError, TopologyError
from devices.topology.builders import switch, torus
from devices.topology.clusters import NETWORK, Cluster
from devices.topology.graph import Link, Node, Topology, both
from devices.topology.machine import machine_of

_SHAPE = re.compile(r"(torus|ring|line) (\d+(?:x\d+)*)")


def of_target(
    target: str | Target, device: str = "device", *, chips: tuple[int, int] | None = None
) -> Topology | Cluster:
    """Return the graph of a target: its chips, its switches and what is known of their links.

    What the catalogue does not know is None, and an error where an answer needs it. A cluster is held as one of the
    UltraServers or machines that it is made of, and how many there are.

    Args:
        target: a machine, an UltraServer, a cluster or a domain of two kinds of chips, or its name.
        device: the first half of the devices' names.
        chips: of a domain, how many it has of the one kind and of the other, which its target does not say.

    Raises:
        TargetNotFoundError: the catalogue has no such target.
        TopologyError: its shape is not known.

    >>> trainium2 = of_target("trn2.48xlarge", device="neuron")
    >>> trainium2.neighbours("neuron:0"), trainium2.links[0].status
    (('neuron:1', 'neuron:3', 'neuron:4', 'neuron:12'), 'inferred')
    >>> len(of_target("trainium3-ultracluster-gen1").devices)
    1000000
    """
    found = catalogue.load(target) if isinstance(target, str) else target
    if found.kind == "domain":
        return _domain(found, device, chips)
    if chips is not None:
        raise ArgumentError(f"`chips` is said of a domain of two kinds, and {found.name!r} is a {found.kind}")
    if found.kind == "cluster" and found.of is not None:
        return _cluster(found, found.of, device)
    return _joined(found, device)


def _cluster(found: Target, of: Target, device: str) -> Cluster:
    node = of.of if of.kind == "ultraserver" and of.of is not None else of
    machine, figure = machine_of(found), _figure(node, "nic_bandwidth")
    wire = Link(
        f"{device}:0",
        NETWORK,
        "network",
        machine.network,
        # What is known is from one device to another, over two links.
        None if machine.network_latency is None else machine.network_latency / 2,
        figure.source if machine.network is not None else "",
        (figure.status or "") if machine.network is not None else "",
    )
    return Cluster(str(found), _joined(of, device), found.members, wire, found)


def _domain(found: Target, device: str, chips: tuple[int, int] | None) -> Topology:
    """Return chips of two kinds on the switches of one domain."""
    shape, _ = _shape(found)
    kinds = [part.name for part in (found.of, found.beside) if part is not None]
    if shape != "switch" or len(kinds) != 2:
        raise TopologyError(f"how the chips of {found.name!r} are joined is not known")
    asked = f"say `chips`, how many are {kinds[0]} and how many {kinds[1]}, {found.members} at most"
    if chips is None:
        raise TopologyError(f"target {found.name!r} does not state how many chips of each kind it has: {asked}")
    if (
        not isinstance(chips, (tuple, list))
        or len(chips) != 2
        or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in chips)
        or not 0 < sum(chips) <= found.members
    ):
        raise ArgumentError(f"of {found.name!r} {asked}, got {chips!r}")
    names = [name for name, count in zip(kinds, chips, strict=True) for _ in range(count)]
    nodes = [Node(f"{device}:{place}", attributes={"chip": name}) for place, name in enumerate(names)]
    links = [_figured(Link(node.name, "switch", "link"), found, _rate(found), 1) for node in nodes]
    if found.speculative:
        # That each chip has all that the platform offers is stated of none.
        links = [replace(link, status="assumed" if link.bandwidth is not None else "") for link in links]
    return _named(found, Topology([*nodes, Node("switch", "switch", _reducing(found))], both(*links)))


def _joined(found: Target, device: str) -> Topology:
    """Return the graph of a machine or an UltraServer."""
    if found.kind == "machine":
        return _named(found, _machine(found, device, found.members))
    if found.of is None:
        raise TopologyError(f"target {found.name!r} is a chip, of which no graph is known")
    machine, chips = found.of, found.of.members
    count = found.members * chips
    own = _rate(found)
    shape, lengths = _shape(found)
    if shape == "torus":
        _, inner = _shape(machine)
        if lengths[1:] != inner or lengths[0] != found.members:
            raise TopologyError(
                f"the torus {lengths} of {found.name!r} is not {found.members} times that of its machines"
            )
        machines = _copies(_machine(machine, device, chips), found.members, device)
        rings = torus(lengths, 1, device=device)
        across = [link for link in rings.links if abs(_place(link.source) - _place(link.target)) % chips == 0]
        links = [_figured(replace(link, kind="link"), found, own, 2 / int(link.bandwidth or 1)) for link in across]
        return _named(found, Topology(machines.nodes, [*machines.links, *links]))
    if shape != "switch":
        raise TopologyError(f"how the machines of {found.name!r} are joined is not known")
    if _figure(machine, "link_bandwidth_one_way").absent == "none":
        # The chips' links all go to the rack's switches.
        nodes, links = list(_machine(machine, device, count).devices), []
    else:
        inside = _copies(_machine(machine, device, chips), found.members, device)
        nodes, links = list(inside.nodes), list(inside.links)
    racks = _racks(found)
    for rack in range(racks):
        nodes.append(Node(f"rack:{rack}", "switch", _reducing(found)))
    for place in range(count):
        link = Link(f"{device}:{place}", f"rack:{place * racks // count}", "link")
        links += both(_figured(link, found, own, 1))
    links += _between_racks(found, racks, count, device)
    return _named(found, Topology(nodes, links))


def _machine(machine: Target, device: str, count: int) -> Topology:
    """Return the graph of a machine, or of chips on one switch if they are more than a machine has."""
    shape, lengths = _shape(machine)
    rate = _rate(machine)
    if count != machine.members or shape == "switch":
        bare = switch(count, device=device, name="switch", kind="link")
        nodes = [*bare.devices, Node("switch", "switch", _reducing(machine))]
        return Topology(nodes, [_figured(link, machine, rate, 1) for link in bare.links])
    if shape is None:
        if machine.members == 1:
            return Topology([Node(f"{device}:0")])
        raise TopologyError(f"how the chips of {machine.name!r} are joined is not known")
    bare = torus(lengths, 1, wrap=shape != "line", device=device, kind="link")
    # What a chip has goes to all its cables alike.
    cables = 2 * sum(length > 1 for length in lengths)
    links = [_figured(link, machine, rate, cables / int(link.bandwidth or 1)) for link in bare.links]
    return Topology(bare.nodes, links)


def _copies(one: Topology, times: int, device: str) -> Topology:
    """Return so many copies side by side, the devices of all numbered on."""
    size = len(one.devices)
    nodes: list[Node] = []
    switches: list[Node] = []
    links: list[Link] = []
    for copy in range(times):
        names = {
            node.name: f"{device}:{copy * size + _place(node.name)}" if node.is_device else f"{node.name}:{copy}"
            for node in one.nodes
        }
        for node in one.nodes:
            (nodes if node.is_device else switches).append(replace(node, name=names[node.name]))
        links += [replace(link, source=names[link.source], target=names[link.target]) for link in one.links]
    return Topology([*nodes, *switches], links)


def _between_racks(found: Target, racks: int, count: int, device: str) -> list[Link]:
    """Return the links of each chip to the one at its place in the next rack."""
    figure = found.figures.get("rack_link_bandwidth_one_way")
    if racks != 2 or figure is None:
        return []
    half = count // 2
    cables = [Link(f"{device}:{place}", f"{device}:{place + half}", "rack link") for place in range(half)]
    return list(both(*(_figured(link, found, figure, 1) for link in cables)))


def _shape(target: Target) -> tuple[str | None, tuple[int, ...]]:
    value = _figure(target, "topology").value
    if value == "switch":
        return "switch", ()
    if isinstance(value, str) and (match := _SHAPE.fullmatch(value)):
        return match[1], tuple(map(int, match[2].split("x")))
    return None, ()


def _rate(target: Target) -> Figure:
    """Return what a chip sends to others at this level, in one direction."""
    figure = _figure(target, "link_bandwidth_one_way")
    if figure.value is None and figure.absent == "none" and target.kind == "machine" and target.of is not None:
        # The chip's own figure says it all.
        return _figure(target.of, "link_bandwidth_one_way")
    return figure


def _figured(link: Link, target: Target, rate: Figure, cables: float) -> Link:
    """Return a link with its share of what a chip sends, and where that is from."""
    value = rate.value
    bandwidth = float(value) / cables if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    latency = target.figures.get("link_latency")
    seconds = latency.value if latency is not None else None
    if isinstance(seconds, tuple):
        known = [each for each in seconds if isinstance(each, (int, float))]
        seconds = math.fsum(known) / len(known)
    status = rate.status or ""
    return replace(
        link,
        bandwidth=bandwidth,
        latency=seconds if isinstance(seconds, float) else None,
        origin=rate.source if bandwidth is not None else "",
        status=status if bandwidth is not None else "",
    )


def _racks(found: Target) -> int:
    figure = found.figures.get("racks")
    return figure.value if figure is not None and isinstance(figure.value, int) and figure.value > 0 else 1


def _reducing(target: Target) -> dict[str, bool]:
    figure = target.figures.get("switch_reduces")
    return {"reduces": True} if figure is not None and figure.value is True else {}


def _figure(target: Target, name: str) -> Figure:
    return target.figure(name)


def _place(name: str) -> int:
    return int(name.rpartition(":")[2])


def _named(target: Target, topology: Topology) -> Topology:
    return Topology(topology.nodes, topology.links, str(target))
