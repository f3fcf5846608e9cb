"""The constants of NCCL's own cost model, and the few that were fitted to published measurements.

What is not marked FITTED is of NCCL 2.30.7, `src/graph/tuning.cc` and `topo.h`. Latencies are microseconds, bandwidths
GB/s; three values are those of the protocols LL, LL128 and Simple.
"""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOLS = ("LL", "LL128", "Simple")

BASE = {"ring": (6.6, 14.0, 8.4), "tree": (6.8, 14.0, 8.4)}
"""What any call costs."""
LINK = {"ring": (0.6, 1.9, 3.4), "tree": (0.6, 1.25, 4.0)}
"""A step over NVLink."""
NETWORK = {"ring": (2.7, 4.0, 14.0), "tree": (5.0, 8.5, 14.0)}
"""A step over a network."""
NETWORK_OVERHEAD = (1.0, 1.0, 3.0)
"""The least that a step of a ring over a network costs, on Intel and ARM."""
NVLS_LINK, NVLS_NETWORK = 25.0, 20.9
"""Steps of NVLS, where the switch reduces, and between trees of it."""

TREE_CORRECTION = {
    "LL": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1, 1),
    "LL128": (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, *(0.6,) * 6, 0.8, 0.9, 0.9, 0.9, 0.9, 1, 1, 1),
    "Simple": (*(0.9,) * 7, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9, 0.9),
}
"""How much of its bandwidth a tree has, from 64 bytes on, at each doubling."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One column of NCCL's tables. Tuples are of one domain, two, and four or more.

    Args:
        per_link: what one NVLink carries.
        ll_most: the most that LL carries.
        ring_ll128: the most of a channel in a ring with LL128.
        tree: the most of a channel in a tree with Simple.
        tree_ll128: the same with LL128.
        nvls: how much of a link NVLS uses; 0 where there is none. FITTED: Hopper's 0.825 to the sweep over 4 to 8 H200
            (NCCL says 0.85); Blackwell's is NCCL's own, and right for 8 GB300.
    """

    per_link: float
    ll_most: tuple[float, float, float]
    ring_ll128: tuple[float, float, float]
    tree: tuple[float, float, float]
    tree_ll128: tuple[float, float, float]
    nvls: float


GENERATIONS = {
    "ampere": Generation(20.0, (87.7, 22.5, 19.0), (20.0,) * 3, (24.0, 23.6, 17.8), (20.0,) * 3, 0.0),
    "hopper": Generation(20.6, (141.0, 45.0, 35.0), (36.7,) * 3, (38.7, 41.4, 36.0), (36.7, 36.7, 29.0), 0.825),
    "blackwell": Generation(40.1, (282.0, 90.0, 70.0), (40.0,) * 3, (70.0, 42.8, 24.0), (55.6, 31.67, 20.0), 0.74),
}

NETWORK_LATENCY = 2.8e-6
"""The latency of a network of which NCCL's constants are: measured with ib_write_lat between two trays of GB300. One
that is slower makes each step over it as much slower: EFA's 15 us give the 69 us that 16 H100 take at least."""

NVLS_START, NVLS_FILL, NVLS_HALF = 18.0, 8.0, 0.5e6
"""FITTED to 8 H100 of 1 MB to 64 MB (the start also below NCCL's 25): the pipeline of NVLS is full after `NVLS_FILL`
microseconds for each rank of a domain, half of that at `NVLS_HALF` bytes for each rank. That 72 GB200 take half a
millisecond more than their bandwidth says agrees."""
NVLS_LARGE = 0.15
"""FITTED to 64 GB300 and 72 GB200: what NVLS loses in a domain of very many ranks, of which 8 lose nothing."""
NVLS_TREE = 0.9
"""FITTED to 2 machines of 8 H100: how much of NVLS inside is left where trees join domains; 128 GB300 agree."""
COPIES = 0.92
"""FITTED to all-to-alls among 4 to 64 GB300: how much of what links carry point-to-point copies use."""
LAUNCH = 3.5
"""FITTED to 8 A100 below 256 KB, which one process drives: what starting each rank's kernel costs it, microseconds."""
