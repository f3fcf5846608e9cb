"""What the time of a collective depends on, read from a target of the catalogue."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from devices.catalogue import Figure, Target
from devices.errors import ArgumentError, MeshError, TargetNotFoundError, TopologyError

UNKNOWN = "unknown"
"""What moves the data where nobody has said."""

SPECULATIVE = ("announced", "assumed")
"""The statuses of figures that make an answer a speculative one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Chips in domains that reach each other by links, and domains that reach each other by a network.

    Bandwidths are bytes per second in one direction.

    Args:
        name: what it is called.
        software: what moves the data: "nccl", "neuron", or what another vendor's process group is called.
        generation: for "nccl" the column of its tables: "ampere", "hopper" or "blackwell"; for others the chip.
        ranks_per_chip: how many ranks a chip has.
        chips_per_node: how many chips an operating system has.
        chips_per_domain: how many chips links join.
        shape: of a domain: "switch", or "torus 4x4".
        link: the bandwidth of a chip to the others of its node.
        links: how many cables that is; None when unknown.
        outer_link: the bandwidth of a chip to the rest of its domain, where that is less than `link`.
        network: the bandwidth of a chip to other domains; None when unknown.
        network_latency: seconds from the memory of a chip to that of one of another domain; None when unknown.
        total: how many chips there are; None for as many as are asked for.
        speculative: whether the figures are of what is announced, or assumed.
        doubts: what is not sure of the figures.
    """

    name: str
    software: str
    generation: str
    ranks_per_chip: int
    chips_per_node: int
    chips_per_domain: int
    shape: str
    link: float
    links: int | None = None
    outer_link: float | None = None
    network: float | None = None
    network_latency: float | None = None
    total: int | None = None
    speculative: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def ranks_per_domain(self) -> int:
        """How many ranks a domain has."""
        return self.ranks_per_chip * self.chips_per_domain

    @property
    def ranks(self) -> int:
        """How many ranks it has: all of a cluster's, or those of a domain."""
        return self.ranks_per_domain if self.total is None else self.ranks_per_chip * self.total

    def domains(self, ranks: int) -> int:
        """Return over how many domains that many ranks lie, filled one after the other."""
        if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
            raise ArgumentError(f"a collective has a whole number of ranks of at least 1, got {ranks!r}")
        per_domain = self.ranks_per_domain
        if ranks > per_domain and ranks % per_domain:
            raise ArgumentError(
                f"{ranks} ranks on {self.name} are more than one domain's {per_domain} and not all of several"
            )
        return math.ceil(ranks / per_domain)

    def having(self, ranks: int) -> int:
        """Return the number of ranks of a mesh, which a cluster has and others are as many as it takes.

        Raises:
            MeshError: it has fewer.
        """
        if self.total is not None and ranks > self.ranks:
            raise MeshError(f"the axes need {ranks} ranks, and {self.name} has {self.ranks}")
        return ranks

    def part(self, inside: int, stride: int = 1) -> Machine:
        """Return the machine as a group sees it that has `inside` ranks of a domain, `stride` apart.

        The groups beside it do the same at the same time, so that the ranks of a chip share what it has; and a chip
        reaches no farther than its node with all of its links.
        """
        per_chip = max(1, min(inside, self.ranks_per_chip // stride))
        share = per_chip / self.ranks_per_chip
        is_wide = inside * stride > self.ranks_per_chip * self.chips_per_node
        link = min(self.link, self.outer_link) if is_wide and self.outer_link is not None else self.link
        return replace(
            self,
            ranks_per_chip=per_chip,
            chips_per_domain=-(-inside // per_chip),
            link=link * share,
            links=self.links if share == 1 else None,
            network=None if self.network is None else self.network * share,
        )

    def between_domains(self) -> float:
        """Return the bandwidth of a chip to other domains.

        Raises:
            TopologyError: it is not known.
        """
        if self.network is None:
            raise TopologyError(
                f"{self.name}: the bandwidth of its network is not known (figure nic_bandwidth), "
                "and ranks of several domains depend on it"
            )
        return self.network


def machine_of(target: Target) -> Machine:
    """Return what the catalogue says of a target; a chip alone is a machine of one.

    Raises:
        TopologyError: a figure that any time depends on is not known.
    """
    limits = target.limits
    chip = target
    while chip.of is not None:
        chip = chip.of
    # What joins the members of a cluster is the network alone.
    domain = target.of if target.kind == "cluster" and target.of is not None else target
    count = math.prod(part.members for part in _parts(domain))
    node = next((part for part in _parts(target) if part.kind == "machine"), target)
    doubts: list[str] = []
    whole = _rate(chip, "link_bandwidth_one_way", doubts)
    inner = _rate(node, "link_bandwidth_one_way", doubts) if node.of is not None else None
    outer = _rate(domain, "link_bandwidth_one_way", doubts) if domain.kind == "ultraserver" else None
    link = inner or whole
    if link is None:
        if count > 1:
            raise TopologyError(
                f"{target.name}: the bandwidth of its chips' links is not known (figure link_bandwidth_one_way), "
                "and every collective depends on it"
            )
        link = math.inf
    network = _rate(node, "nic_bandwidth", doubts)
    return Machine(
        name=target.name,
        software=limits.process_group or UNKNOWN,
        generation=_generation(chip) if limits.process_group == "nccl" else limits.chip,
        ranks_per_chip=limits.ranks_per_chip or 1,
        chips_per_node=limits.chips_per_node,
        chips_per_domain=count,
        shape=str((_optional_figure(domain, "topology") or _NO_SHAPE).value or "switch"),
        link=link,
        links=_count(chip, "links"),
        outer_link=outer,
        network=None if network is None else network / limits.chips_per_node,
        network_latency=_latency(target, node, doubts),
        total=count * target.members if target.kind == "cluster" else None,
        speculative=is_speculative(target),
        doubts=tuple(dict.fromkeys(doubts)),
    )


def is_speculative(target: Target) -> bool:
    """Return whether what a chip computes, holds or reaches is announced or assumed, or the target is as a whole."""
    if any(part.speculative for part in _parts(target)):
        return True
    while target.of is not None:
        target = target.of
    return any(figure.status in SPECULATIVE for key, figure in target.figures.items() if key in _SPEAKING)


_SPEAKING = ("memory", "memory_bandwidth", "link_bandwidth", "link_bandwidth_one_way", "fp4", "fp8", "bf16")
_NO_SHAPE = Figure(place="", value="switch", unit="shape", source="", date="", status=None)


def _generation(chip: Target) -> str:
    """Return which of NCCL's tables serves: each generation computes in a format that the one before has not."""
    if _has(chip, "fp4"):
        return "blackwell"
    return "hopper" if _has(chip, "fp8") else "ampere"


def _has(chip: Target, name: str) -> bool:
    return name in chip.figures and chip.figures[name].value is not None


def _parts(target: Target) -> Iterable[Target]:
    part: Target | None = target
    while part is not None:
        yield part
        part = part.of


def _optional_figure(target: Target, name: str) -> Figure | None:
    try:
        return target.figure(name)
    except TargetNotFoundError:
        return None


def _rate(target: Target, name: str, doubts: list[str]) -> float | None:
    figure = target.figures.get(name)
    if figure is None or not isinstance(figure.value, (int, float)):
        return None
    if figure.status in ("inferred", *SPECULATIVE):
        doubts.append(f"{name} of {target.name} is {figure.status}")
    return float(figure.value)


EFA, EFA_LATENCY = "EFA", 15e-6
"""AWS measured it over EFAv3, from the memory of one Trainium2 to that of another (SDK, inter-node collectives)."""


def _latency(target: Target, node: Target, doubts: list[str]) -> float | None:
    """Return the latency of the network; EFA is taken to be as slow everywhere as it was measured to be."""
    for part in (target, node):
        if (found := _optional(part, "nic_latency")) is not None:
            return found
    network = node.figures.get("network")
    if network is None or not str(network.value).startswith(EFA):
        return None
    doubts.append(f"nic_latency of {node.name} is that of EFA between Trainium2")
    return EFA_LATENCY


def _optional(target: Target, name: str) -> float | None:
    figure = target.figures.get(name)
    value = None if figure is None else figure.value
    if isinstance(value, tuple):
        return sum(map(float, value)) / len(value)
    return float(value) if isinstance(value, (int, float)) else None


def _count(target: Target, name: str) -> int | None:
    figure = target.figures.get(name)
    return figure.value if figure is not None and isinstance(figure.value, int) else None
