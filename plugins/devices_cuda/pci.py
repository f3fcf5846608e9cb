"""The host in a graph: the tree of PCI switches, bridges and NUMA nodes that GPUs and network devices hang on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from devices.errors import TopologyError
from devices.topology import Node
from devices_cuda.machine import ANCESTORS, Gpu, Machine, Nic
from devices_cuda.nearness import ancestor, between
from devices_cuda.parts import Parts, classes

_PCIE_RATES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Bytes per second of one lane in one direction, its coding taken off."""

Leaf = Gpu | Nic
Top = tuple[str, tuple[Leaf, ...], float | None]
"""A node that nothing has joined to others yet: its name, the leaves below it, and the bandwidth of its cable."""


def add_pci(parts: Parts, machine: Machine, gpus: Sequence[Gpu], names: dict[int, str]) -> None:
    """Add a node for each set of GPUs and network devices that share something that no smaller set does.

    Args:
        parts: what is added to.
        machine: what is known.
        gpus: those that are shown.
        names: of the nodes of GPUs, by index.
    """
    leaves: list[Leaf] = [*gpus, *machine.nics]
    for nic in machine.nics:
        known = {"pci": nic.pci, "numa": nic.numa, "rdma": nic.rdma}
        attributes = {key: value for key, value in known.items() if value is not None}
        parts.nodes[f"nic:{nic.name}"] = Node(f"nic:{nic.name}", "nic", attributes)
    tops: list[Top] = [(_name(leaf, names), (leaf,), _rate(leaf)) for leaf in leaves]
    for level in ("single", "multiple", "hostbridge"):
        found: list[Top] = []
        for members in _joined(machine, leaves, level):
            below = [top for top in tops if top[1][0] in members]
            if len(below) == 1:
                found += below
                continue
            kind, stem = ("host", "bridge") if level == "hostbridge" else ("switch", "pcie")
            name = _free(f"{stem}:", parts)
            parts.nodes[name] = Node(name, kind)
            _hang(parts, below, name)
            found.append((name, members, None))
        tops = found
    _add_hosts(parts, machine, leaves, tops)


def _add_hosts(parts: Parts, machine: Machine, leaves: Sequence[Leaf], tops: Sequence[Top]) -> None:
    """Add a node for each NUMA node, or one for all where it is not known which GPUs are on one."""
    found = classes(tops, lambda one, other: _is_one_host(parts, machine, one, other), "a NUMA node")
    with_gpus = [members for members in found if any(_has_gpu(top) for top in members)]
    if any(_is_one_host(parts, machine, *pair) is None for pair in _across(with_gpus)):
        parts.notes.append("which GPUs are on one NUMA node is not known")
        found = [tuple(itertools.chain(*with_gpus)), *(members for members in found if members not in with_gpus)]
        with_gpus = found[:1]
    hosts: list[str] = []
    others: list[str] = []
    for members in found:
        nodes = sorted({number for top in members if (number := _numa(top)) is not None})
        if members not in with_gpus and not nodes:
            nics = [leaf for top in members for leaf in top[1] if isinstance(leaf, Nic)]
            if all(between(machine, gpu, nic) == "system" for nic in nics for gpu in leaves if isinstance(gpu, Gpu)):
                others += [name for name, _, _ in members]
            else:
                parts.notes.append(f"where on PCI {', '.join(nic.name for nic in nics)} is, is not known")
            continue
        number = nodes[0] if len(nodes) == 1 else None
        stem = "host" if number is None else f"host:{number}"
        name = stem if stem not in parts.nodes else _free(f"{stem}?", parts)
        parts.nodes[name] = Node(name, "host", {} if number is None else {"numa": number})
        _hang(parts, members, name)
        hosts.append(name)
    for one, other in itertools.combinations(hosts, 2):
        parts.join(one, other, "smp")
    for other, host in itertools.product(others, hosts):
        parts.join(other, host, "smp")


def _is_one_host(parts: Parts, machine: Machine, one: Top, other: Top) -> bool | None:
    """Return whether two are on one NUMA node: by its number where it is known, and else by what is between them.

    In virtual machines the two often differ: the host numbers NUMA nodes, and lets PCI look flat.
    """
    said = {
        word
        for leaf, peer in itertools.product(one[1], other[1])
        if (word := _between(machine, leaf, peer)) is not None
    }
    numbers = _numa(one), _numa(other)
    if None not in numbers:
        if said and (numbers[0] == numbers[1]) == (said == {"system"}):
            parts.note(
                "PCI puts devices of one NUMA node on several, or the reverse, as it often does in virtual machines: "
                "the graph goes by the numbers of the nodes"
            )
        return numbers[0] == numbers[1]
    if "system" in said and len(said) > 1:
        raise TopologyError(f"{one[0]} and {other[0]} are on one NUMA node, and on two")
    return None if not said else "system" not in said


def _numa(top: Top) -> int | None:
    numbers = sorted({leaf.numa for leaf in top[1] if leaf.numa is not None})
    if len(numbers) > 1:
        raise TopologyError(f"what shares {top[0]} is on NUMA nodes {', '.join(map(str, numbers))}")
    return numbers[0] if numbers else None


def _has_gpu(top: Top) -> bool:
    return any(isinstance(leaf, Gpu) for leaf in top[1])


def _across(some: Sequence[tuple[Top, ...]]) -> Iterator[tuple[Top, Top]]:
    for members, others in itertools.combinations(some, 2):
        yield from itertools.product(members, others)


def _free(stem: str, parts: Parts) -> str:
    return next(name for number in itertools.count() if (name := f"{stem}{number}") not in parts.nodes)


def _hang(parts: Parts, below: Sequence[Top], name: str) -> None:
    for lower, _, rate in below:
        parts.join(lower, name, "pcie", rate, "PCI generation and lanes")


def _joined(machine: Machine, leaves: Sequence[Leaf], level: str) -> list[tuple[Leaf, ...]]:
    """Return the leaves in classes: those with no more than `level` between them."""
    return classes(leaves, lambda one, other: _is_joined(machine, one, other, level), f"PCI, level {level!r}")


def _is_joined(machine: Machine, one: Leaf, other: Leaf, level: str) -> bool | None:
    said = _between(machine, one, other)
    return None if said is None else ANCESTORS.index(said) <= ANCESTORS.index(level)


def _between(machine: Machine, one: Leaf, other: Leaf) -> str | None:
    """Return what is between two leaves: by their paths, which fit together, and else what somebody says."""
    if one.path is not None and other.path is not None and (found := ancestor(one, other)) is not None:
        return found
    if isinstance(one, Gpu) and isinstance(other, Gpu):
        pair = machine.pair(one.index, other.index)
        return pair.ancestor if pair is not None and pair.ancestor is not None else ancestor(one, other)
    if isinstance(one, Gpu) and isinstance(other, Nic):
        return between(machine, one, other)
    if isinstance(one, Nic) and isinstance(other, Gpu):
        return between(machine, other, one)
    return ancestor(one, other)


def _name(leaf: Leaf, names: dict[int, str]) -> str:
    return names[leaf.index] if isinstance(leaf, Gpu) else f"nic:{leaf.name}"


def _rate(leaf: Leaf) -> float | None:
    if not isinstance(leaf, Gpu) or leaf.pcie_width is None:
        return None
    lane = _PCIE_RATES.get(leaf.pcie_generation or 0)
    return None if lane is None else lane * leaf.pcie_width
