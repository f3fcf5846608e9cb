"""What a graph claims of a machine, so that a graph of damaged data can be held against the true one."""

from __future__ import annotations

import itertools

from devices.topology import Topology

Claims = dict[tuple[str, ...], float | None]


def claims(graph: Topology) -> Claims:
    """Return each thing that a graph says, with the bandwidth that it says it has.

    That there are NVLinks between two devices, or a device and a switch; that two share something on PCI that is less
    than a NUMA node; and which NUMA node one is on.
    """
    found: Claims = {}
    for link in graph.links:
        if link.kind == "nvlink":
            ends = ["switch" if graph.node(end).kind == "switch" else end for end in (link.source, link.target)]
            found["nvlink", *sorted(ends)] = link.bandwidth
    below = {node.name: leaves_below(graph, node.name) for node in graph.nodes if node.kind in ("switch", "host")}
    for name, leaves in below.items():
        if name.startswith("host:") and "?" not in name:
            found |= {("numa", name, leaf): None for leaf in leaves}
        elif not name.startswith("host") and not name.startswith("nv"):
            found |= {("near", *sorted(pair)): None for pair in itertools.combinations(leaves, 2)}
    for node in graph.nodes:
        if node.reduces:
            found["reduces",] = None
    return found


def leaves_below(graph: Topology, name: str) -> list[str]:
    """Return the devices and network devices that hang on a node, at any depth."""
    rank = {"pcie": 0, "bridge": 1, "host": 2}
    own = rank.get(name.partition(":")[0], -1)
    found: list[str] = []
    for link in graph.links_from(name):
        if link.kind != "pcie":
            continue
        kind = graph.node(link.target).kind
        if kind in ("device", "nic"):
            found.append(link.target)
        elif rank[link.target.partition(":")[0]] < own or is_below(graph, link.target, name):
            found += leaves_below(graph, link.target)
    return found


def is_below(graph: Topology, lower: str, upper: str) -> bool:
    """Return whether one PCI switch is below another: switches are numbered as they are found, the lowest first."""
    both_switches = lower.startswith("pcie:") and upper.startswith("pcie:")
    return both_switches and int(lower.partition(":")[2]) < int(upper.partition(":")[2])


def wrong(graph: Topology, truth: Topology) -> list[str]:
    """Return what a graph claims that is not so; to claim less, or not to know a bandwidth, is not wrong."""
    said, so = claims(graph), claims(truth)
    return [
        f"{key}: {rate}"
        for key, rate in said.items()
        if key not in so or (rate is not None and so[key] is not None and rate != so[key])
    ]
