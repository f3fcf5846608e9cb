"""The time of NCCL's collectives: rings, trees and NVLS, each in the protocols that it has, and the fastest of them.

The structure and nearly all constants are NCCL's own. NCCL chooses by the same sum, for a network that is fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from devices.topology.estimate import Estimate, around
from devices.topology.machine import Machine
from devices.topology.nccl_tuning import (
    BASE,
    COPIES,
    GENERATIONS,
    LAUNCH,
    LINK,
    NETWORK,
    NETWORK_LATENCY,
    NETWORK_OVERHEAD,
    NVLS_FILL,
    NVLS_HALF,
    NVLS_LARGE,
    NVLS_LINK,
    NVLS_NETWORK,
    NVLS_START,
    NVLS_TREE,
    PROTOCOLS,
    TREE_CORRECTION,
)

BASIS = "NCCL 2.30.7's constants; NVLS fitted to 8 H100, 4 to 8 H200 and 72 GB200"

_SPREAD = {(True, True): (0.65, 1.5), (True, False): (0.7, 2.0), (False, True): (0.85, 1.4), (False, False): (0.8, 1.6)}
"""How far published measurements lie from what is expected: below 1 MB or above, in one domain or in several."""


def nccl_time(verb: str, size: float, ranks: int, machine: Machine, *, one_process: bool = False) -> Estimate:
    """Return how long a collective takes; `devices.topology.predict` says what the arguments mean."""
    domains = machine.domains(ranks)
    doubts = []
    if domains > 1 and machine.network_latency is None:
        doubts.append("the latency of the network is not known (figure nic_latency), and NCCL's own is taken")
    # NCCL chooses by its own constants, and does not know how slow a network is.
    chosen = list(_candidates(verb, size, ranks, domains, replace(machine, network_latency=None)))
    took = list(_candidates(verb, size, ranks, domains, machine))
    place = min(range(len(chosen)), key=lambda each: chosen[each][1] + chosen[each][2], default=0)
    algorithm, latency, transfer = took[place] if took else ("none", 0.0, 0.0)
    if one_process:
        latency += LAUNCH * ranks
    low, high = _SPREAD[size < 1 << 20, domains == 1]
    if doubts or domains > 2:
        low, high = low * 0.8, high * 1.4
    return around(algorithm, latency * 1e-6, transfer * 1e-6, (low, high), BASIS, doubts)


def _candidates(
    verb: str, size: float, ranks: int, domains: int, machine: Machine
) -> Iterator[tuple[str, float, float]]:
    """Yield what may be chosen: its name, and the microseconds of latency and of transfer."""
    if ranks == 1:
        return
    if verb in ("all_to_all", "gather", "scatter", "permute", "send"):
        yield _copied(verb, size, ranks, domains, machine)
        return
    for place, protocol in enumerate(PROTOCOLS):
        yield f"ring, {protocol}", *_ring(verb, size, ranks, domains, machine, place)
        if verb == "all_reduce":
            yield f"tree, {protocol}", *_tree(size, ranks, domains, machine, place)
    generation = GENERATIONS[machine.generation]
    if verb == "all_reduce" and generation.nvls and machine.shape == "switch" and ranks // domains > 2:
        yield ("NVLS" if domains == 1 else "trees of NVLS"), *_nvls(size, ranks, domains, machine)


def _ring(verb: str, size: float, ranks: int, domains: int, machine: Machine, place: int) -> tuple[float, float]:
    generation, column = GENERATIONS[machine.generation], _column(domains)
    rate = _inside(machine)
    if domains > 1:
        rate = min(rate, machine.between_domains() * 1e-9 * machine.chips_per_domain)
    channels = machine.links or 16
    capped = (
        min(generation.ll_most[column], rate / 2),
        min(0.92 * rate, channels * generation.ring_ll128[column]),
        rate,
    )[place]
    steps = {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1, "reduce_scatter": ranks - 1}.get(verb, ranks)
    passes = {"all_reduce": 2 * (ranks - 1) / ranks, "broadcast": 1.0, "reduce": 1.0}.get(verb, (ranks - 1) / ranks)
    step = LINK["ring"][place]
    latency = BASE["ring"][place] + steps * step
    if domains > 1:
        over = (2 if verb == "all_reduce" else 1) * (domains - 1)
        inside = max(step, NETWORK_OVERHEAD[place])
        latency = BASE["ring"][place] + (steps - over) * inside + over * NETWORK["ring"][place] * _slower(machine)
        # Each rank keeps so few bytes in flight that a step's latency shows in all of them, once there are enough.
        if place == 2 and size >= 64 * ranks * channels:
            latency *= 1.4
    return latency, passes * size / (1000 * capped)


def _tree(size: float, ranks: int, domains: int, machine: Machine, place: int) -> tuple[float, float]:
    generation, column = GENERATIONS[machine.generation], _column(domains)
    rate, channels = _inside(machine), machine.links or 16
    if domains > 1:
        rate = min(rate, machine.between_domains() * 1e-9 * machine.chips_per_domain * (2 if domains == 2 else 1))
    capped = (
        min(rate / 3.8, generation.ll_most[column]),
        min(rate * (7 / 9 if domains == 1 else 120 / 128), channels * generation.tree_ll128[column]),
        min(0.92 * rate, channels * generation.tree[column]),
    )[place]
    doublings = max(0, int(size) >> 6).bit_length() - 1
    if 0 <= doublings < 24:
        capped *= TREE_CORRECTION[PROTOCOLS[place]][doublings]
    hops = (ranks / domains - 1) * LINK["tree"][place]
    hops += math.log2(domains) * NETWORK["tree"][place] * _slower(machine)
    return BASE["tree"][place] + 2 * hops, size / (1000 * capped * 0.5)


def _nvls(size: float, ranks: int, domains: int, machine: Machine) -> tuple[float, float]:
    """The switch pulls all ranks' data and pushes the sums: (1 + 1/n) of the bytes go each way over each link."""
    inside = ranks // domains
    share = 1 - NVLS_LARGE * (1 - 8 / inside) if inside > 8 else 1.0
    rate = _inside(machine) * GENERATIONS[machine.generation].nvls * share / (1 + 1 / inside)
    # A short message leaves the pipeline half filled.
    fill = NVLS_FILL * inside * size / (size + NVLS_HALF * inside)
    if domains == 1:
        return NVLS_START + fill, size / (1000 * rate)
    network = machine.between_domains() * 1e-9 * inside
    rate = min(rate * NVLS_TREE, network if domains == 2 else network / 2)
    hops = 2 * math.log2(domains) * NVLS_NETWORK * _slower(machine)
    return NVLS_LINK + hops + fill, size / (1000 * rate)


def _copied(verb: str, size: float, ranks: int, domains: int, machine: Machine) -> tuple[str, float, float]:
    """Return the time of what is sent from rank to rank, all at once."""
    rate = _inside(machine) * COPIES
    latency = BASE["ring"][2] + LINK["ring"][2]
    if verb in ("permute", "send"):
        rate = min(rate, machine.between_domains() * 1e-9) if domains > 1 else rate
        inside, across = (0.0, size / rate) if domains > 1 else (size / rate, 0.0)
    else:
        per_domain = ranks // domains
        inside = size * (per_domain - 1) / ranks / rate
        across = size * (ranks - per_domain) / ranks / (machine.between_domains() * 1e-9) if domains > 1 else 0.0
    if domains > 1:
        latency += NETWORK["ring"][2] * _slower(machine)
    return "pairs, Simple", latency, max(inside, across) / 1000


def _inside(machine: Machine) -> float:
    """Return what NCCL gets through a chip's links, GB/s."""
    if machine.links is None or math.isinf(machine.link):
        return machine.link * 1e-9
    return min(machine.link * 1e-9, machine.links * GENERATIONS[machine.generation].per_link)


def _slower(machine: Machine) -> float:
    """Return how many times as long a step takes as over the network of which NCCL's constants are."""
    return 1.0 if machine.network_latency is None else max(1.0, machine.network_latency / NETWORK_LATENCY)


def _column(domains: int) -> int:
    return 0 if domains == 1 else 1 if domains == 2 else 2


ALGORITHMS: Mapping[str, str] = {
    "ring": "each rank passes on to the next",
    "tree": "two trees, of which each has half the data",
    "NVLS": "the NVSwitch reduces and multicasts",
    "trees of NVLS": "NVLS inside each domain, trees between them",
    "pairs": "each rank sends to each other",
}
