"""What a GPU can do: the dtypes of its generation, what NCCL reduces, and what it is linked to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType

from devices import Capabilities, Device, Link
from devices.errors import BackendUnavailableError, TopologyError
from devices.topology import Topology
from devices_cuda.graph import topology
from devices_cuda.machine import Machine
from devices_cuda.presence import host, usable
from devices_cuda.visibility import Seen

_EVERY = (
    "float64", "float32", "float16", "complex32", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool",
)  # fmt: skip

_FROM = (
    ((8, 0), ("bfloat16",)),
    ((8, 9), ("float8_e4m3fn", "float8_e5m2")),
    ((10, 0), ("float8_e8m0fnu",)),
)
"""The compute capability from which on a GPU computes with a dtype."""


def dtypes_of(capability: tuple[int, int] | None) -> tuple[str, ...]:
    """Return the names of the dtypes that a GPU of a compute capability has; only what all have, if it is not known."""
    more = (names for least, names in _FROM if capability is not None and capability >= least)
    return (*_EVERY, *(name for names in more for name in names))


def capabilities_of(capability: tuple[int, int] | None, links: tuple[Link, ...] = ()) -> Capabilities:
    """Return what a GPU of a compute capability can do."""
    import torch

    from devices import ProcessGroupCommunicator

    dtypes = frozenset(getattr(torch, name) for name in dtypes_of(capability))
    reductions = {op: some & dtypes for op, some in ProcessGroupCommunicator.reductions_of("nccl").items()}
    return Capabilities(dtypes=dtypes, reductions=MappingProxyType(reductions), links=links, messages="staged")


def capabilities(device: Device) -> Capabilities:
    """Return what a GPU of this host can do."""
    found = host()
    seen = usable(found, None).seen
    if not 0 <= device.index < len(seen):
        raise BackendUnavailableError(f"there is no {device}: this process sees {len(seen)} GPUs")
    return capabilities_of(seen[device.index].gpu.capability, links_of(found, seen).get(str(device), ()))


@functools.lru_cache(maxsize=8)
def links_of(found: Machine, seen: tuple[Seen, ...]) -> Mapping[str, tuple[Link, ...]]:
    """Return what each GPU reaches over NVLink, through a switch or not, and which others' memory over PCI."""
    try:
        graph = topology(found, seen)
    except TopologyError:
        # A device is not lost with its links; `contradictions` says what does not fit.
        return MappingProxyType({})
    links: dict[str, tuple[Link, ...]] = {}
    for (place, one), (other_place, other) in itertools.permutations(enumerate(seen), 2):
        name, peer = f"cuda:{place}", f"cuda:{other_place}"
        pair = found.pair(one.gpu.index, other.gpu.index)
        link = _over_nvlink(graph, name, peer)
        if link is None and pair is not None and pair.read and one.instance is None and other.instance is None:
            link = Link(peer, "pcie")
        if link is not None:
            links[name] = (*links.get(name, ()), link)
    return MappingProxyType(links)


def _over_nvlink(graph: Topology, name: str, peer: str) -> Link | None:
    ways = {link.target: link for link in graph.links_from(name) if link.kind == "nvlink"}
    if peer in ways:
        return Link(peer, "nvlink", ways[peer].bandwidth)
    for middle, way in ways.items():
        for last in graph.links_from(middle):
            if last.target == peer and last.kind == "nvlink" and not graph.node(middle).is_device:
                rates = (way.bandwidth, last.bandwidth)
                return Link(peer, "nvlink", None if None in rates else min(rate for rate in rates if rate is not None))
    return None
