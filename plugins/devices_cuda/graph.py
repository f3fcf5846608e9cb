"""A machine as a `Topology`: GPUs, the switches of their NVLinks, and the tree of PCI that they hang on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from devices.errors import TopologyError
from devices.topology import Node, Topology
from devices_cuda.machine import Gpu, Machine
from devices_cuda.parts import Parts, classes
from devices_cuda.pci import add_pci
from devices_cuda.visibility import Seen

_NVLINK_RATES = {"1.0": 20e9, "2.0": 25e9, "3.0": 25e9, "4.0": 25e9, "5.0": 50e9, "6.0": 50e9}
"""Bytes per second of one link in one direction, as the GPUs' data sheets have it; versions between are not known."""

_MOST_DIRECT = 18
"""No GPU had more NVLinks to others without a switch."""


def topology(machine: Machine, seen: Sequence[Seen] | None = None) -> Topology:
    """Return the graph of a machine's GPUs.

    Args:
        machine: what is known of it.
        seen: torch's `cuda:0`, `cuda:1`, ...; all GPUs of the machine that can be opened, by their indices, if None.

    Raises:
        TopologyError: what is known contradicts itself.
    """
    return _built(machine, seen)[0]


def doubts(machine: Machine, seen: Sequence[Seen] | None = None) -> tuple[str, ...]:
    """Return what was left out of the graph because it could not be told or used, in words."""
    parts = _built(machine, seen)[1]
    return (*parts.faults, *parts.notes)


def faults(machine: Machine, seen: Sequence[Seen] | None = None) -> tuple[str, ...]:
    """Return what is there and cannot be used, in words."""
    return tuple(_built(machine, seen)[1].faults)


def _built(machine: Machine, seen: Sequence[Seen] | None) -> tuple[Topology, Parts]:
    if seen is None:
        numbered = [(gpu.index, Seen(gpu)) for gpu in machine.gpus if gpu.fault is None]
    else:
        numbered = list(enumerate(seen))
    parts = Parts()
    names: dict[int, str] = {}
    for number, each in numbered:
        if each.gpu.index in names:
            raise TopologyError(f"GPU {each.gpu.index} is there twice, and a graph has each once")
        names[each.gpu.index] = f"cuda:{number}"
        parts.nodes[f"cuda:{number}"] = Node(f"cuda:{number}", "device", _attributes(each))
    shown = [each for _, each in numbered]
    whole = [each.gpu for each in shown if each.instance is None]
    _add_nvlinks(parts, machine, whole, names)
    add_pci(parts, machine, [each.gpu for each in shown], names)
    return Topology(parts.nodes.values(), parts.links, machine.source), parts


def _attributes(seen: Seen) -> dict[str, str | int | bool]:
    gpu, whole = seen.gpu, seen.instance or seen.gpu
    found = {
        "model": whole.name or gpu.name,
        "uuid": whole.uuid,
        "memory": whole.memory,
        "pci": gpu.pci,
        "numa": gpu.numa,
        "memory_numa": gpu.memory_numa,
        "capability": None if gpu.capability is None else "{}.{}".format(*gpu.capability),
        "nvlinks": None if gpu.nvlinks is None or seen.instance is not None else len(gpu.nvlinks),
        "nvlink_version": _version(gpu) if seen.instance is None else None,
        "mig": True if seen.instance is not None else None,
    }
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _add_nvlinks(parts: Parts, machine: Machine, gpus: Sequence[Gpu], names: dict[int, str]) -> None:
    by_address = {gpu.pci: gpu for gpu in gpus if gpu.pci is not None}
    direct: dict[tuple[int, int], list[float | None]] = {}
    switched: list[Gpu] = []
    for gpu in gpus:
        remotes = [_remote(link.remote, link.peer in by_address) for link in gpu.nvlinks or ()]
        if "unknown" in remotes:
            parts.notes.append(f"GPU {gpu.index}: {remotes.count('unknown')} NVLinks lead to what is not known")
        if "switch" in remotes:
            switched.append(gpu)
        for link, remote in zip(gpu.nvlinks or (), remotes, strict=True):
            if remote == "gpu" and link.peer in by_address:
                key = gpu.index, by_address[link.peer].index
                direct.setdefault(key, []).append(_NVLINK_RATES.get(link.version or ""))
    _add_direct(parts, machine, direct, names)
    _add_switched(parts, machine, switched, names)
    unknown = [str(gpu.index) for gpu in gpus if gpu.nvlinks is None]
    if unknown and not (
        len(unknown) == len(gpus) and machine.pairs and all(pair.nvlinks is not None for pair in machine.pairs)
    ):
        parts.note(f"whether GPU {', '.join(unknown)} has NVLinks is not known")
    if len(unknown) == len(gpus):
        _add_counted(parts, machine, gpus, names)


def _remote(said: str | None, is_gpu: bool) -> str:
    """Return what a link leads to; an old driver says only the address there."""
    return "gpu" if said is None and is_gpu else said or "unknown"


def _add_direct(
    parts: Parts, machine: Machine, direct: dict[tuple[int, int], list[float | None]], names: dict[int, str]
) -> None:
    for (first, second), rates in direct.items():
        back = direct.get((second, first), [])
        if len(back) != len(rates):
            raise TopologyError(
                f"GPU {first} has {len(rates)} NVLinks to GPU {second}, which has {len(back)} back to it"
            )
        pair = machine.pair(first, second)
        if pair is not None and pair.over_nvlink is False:
            if first < second:
                parts.faults.append(f"GPUs {first} and {second} have NVLinks, over which the driver lets them not talk")
        elif first < second:
            parts.join(names[first], names[second], "nvlink", _sum(rates), "NVLink version and number of links")


def _add_switched(parts: Parts, machine: Machine, gpus: Sequence[Gpu], names: dict[int, str]) -> None:
    joined = []
    for gpu in gpus:
        if gpu.fabric is not None and (
            gpu.fabric.state in ("not started", "in progress")
            or (gpu.fabric.state == "completed" and gpu.fabric.status)
        ):
            parts.faults.append(
                f"GPU {gpu.index} is no member of its NVLink domain: {gpu.fabric.state}, status {gpu.fabric.status}"
            )
        else:
            joined.append(gpu)
    if any(_reach_each_other(machine, *pair) is None for pair in itertools.combinations(joined, 2)):
        parts.note("which GPUs share NVLink switches is not known")
        return
    for members in classes(joined, lambda one, other: _reach_each_other(machine, one, other), "NVLink switches"):
        local = f"nvswitch:{joined.index(members[0])}" if len(members) < len(joined) else "nvswitch"
        domain = members[0].fabric.domain if members[0].fabric is not None else None
        # One name on all hosts of a domain, so that their graphs are one when they are put together.
        name = local if domain is None else f"nvlink-domain:{domain}"
        reduces = all(_is_reduced_for(gpu) for gpu in members)
        parts.nodes[name] = Node(name, "switch", {"reduces": True} if reduces else {})
        for gpu in members:
            links = [link for link in gpu.nvlinks or () if link.remote == "switch"]
            # A link that leads to what is not known may be one more.
            is_whole = all(link.remote in ("switch", "gpu", "npu") for link in gpu.nvlinks or ())
            rate = _sum([_NVLINK_RATES.get(link.version or "") for link in links]) if is_whole else None
            parts.join(names[gpu.index], name, "nvlink", rate, "NVLink version and number of links")


def _reach_each_other(machine: Machine, one: Gpu, other: Gpu) -> bool | None:
    """Return whether two GPUs on switches are on the same ones; the driver's word goes first."""
    domains = [gpu.fabric.domain if gpu.fabric is not None else None for gpu in (one, other)]
    if domains[0] != domains[1]:
        return False
    pair = machine.pair(one.index, other.index)
    if pair is not None and pair.over_nvlink is not None:
        return pair.over_nvlink
    return None if one.fabric is None or other.fabric is None else True


def _is_reduced_for(gpu: Gpu) -> bool:
    """Return whether its switches can combine what comes in: those of the third generation can, once it has joined."""
    is_new = gpu.capability is not None and gpu.capability >= (9, 0)
    return is_new and gpu.fabric is not None and gpu.fabric.state == "completed"


def _add_counted(parts: Parts, machine: Machine, gpus: Sequence[Gpu], names: dict[int, str]) -> None:
    """Add what is known where only the number of links between each two GPUs is, as `nvidia-smi` prints it."""
    counts = {
        (one.index, other.index): pair.nvlinks
        for one, other in itertools.combinations(gpus, 2)
        if (pair := machine.pair(one.index, other.index)) is not None and pair.nvlinks
    }
    for members in classes(gpus, lambda one, other: counts.get((one.index, other.index)) is not None or None, ""):
        if len(members) < 2:
            continue
        within = {
            key: counts[key] for key in itertools.combinations([gpu.index for gpu in members], 2) if key in counts
        }
        is_full = len(within) == len(members) * (len(members) - 1) // 2
        # More than a GPU has, if each two had links of their own: they go through a switch.
        if (
            is_full
            and len(set(within.values())) == 1
            and (len(members) - 1) * next(iter(within.values())) > _MOST_DIRECT
        ):
            name = "nvswitch" if len(members) == len(gpus) else f"nvswitch:{members[0].index}"
            parts.nodes[name] = Node(name, "switch")
            for gpu in members:
                parts.join(names[gpu.index], name, "nvlink")
        else:
            for first, second in within:
                parts.join(names[first], names[second], "nvlink")


def _version(gpu: Gpu) -> str | None:
    versions = {link.version for link in gpu.nvlinks or ()}
    return next(iter(versions)) if len(versions) == 1 else None


def _sum(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == len(rates) and known else None
