"""What the catalogue says of a machine that was found: its capabilities, and how fast its links are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from devices import Capabilities, Device, Link
from devices_neuron.chips import machine as in_catalogue
from devices_neuron.cores import Core
from devices_neuron.machine import Machine

if TYPE_CHECKING:
    from devices.catalogue import Figure, Limits, Target


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a link is, and who says so.

    Args:
        bandwidth: bytes per second in one direction; None when unknown.
        latency: seconds; None when unknown.
        origin: what of the catalogue it is from.
        status: how sure it is, as `devices.catalogue.STATUSES` has it.
    """

    bandwidth: float | None = None
    latency: float | None = None
    origin: str = ""
    status: str = ""


def target_of(machine: Machine) -> Target | None:
    """Return the machine in the catalogue whose figures hold: of the same chips, number and instance type."""
    target = in_catalogue(machine.generation, len(machine.chips))
    if target is None or not machine.instance_type:
        return target
    # A trn1n.32xlarge has the chips and the links of a trn1.32xlarge, twice as fast.
    family = machine.instance_type.partition(".")[0]
    known = {"trn1": "trn1.32xlarge", "inf2": target.name, "trn2": "trn2.48xlarge", "trn2u": "trn2.48xlarge"}
    return target if family.startswith("trn3") or known.get(family) == target.name else None


def between_chips(machine: Machine) -> Rate:
    """Return how fast the link between two neighbours is, or between a chip and the switch that joins all.

    What the catalogue has is of all links of a chip together: each of a chip's neighbours has its share.
    """
    target = target_of(machine)
    if target is None:
        return Rate()
    figure = target.figure("link_bandwidth_one_way")
    total = _number(figure)
    shape = str(target.figure("topology").value or "")
    degree = 1 if shape == "switch" else max(len(chip.neighbours or ()) for chip in machine.chips)
    if total is None or not degree:
        return Rate()
    latency = target.figure("link_latency").value
    # Of a least and a most the most: nothing then takes less than it is said to.
    least_and_most = latency if isinstance(latency, tuple) else (latency,)
    seconds = [float(each) for each in least_and_most if isinstance(each, (int, float))]
    share = "" if degree == 1 else f", a {degree}th"
    origin = f"catalogue: {target.name}, link_bandwidth_one_way{share}"
    return Rate(total / degree, max(seconds, default=None), origin, "inferred" if share else figure.status or "")


def within_a_chip(machine: Machine, cores: int) -> Rate:
    """Return how fast one of a chip's logical cores reaches the others: its share of what the chip can copy."""
    target = machine.generation.figures()
    total = _number(target.figure("dma_bandwidth")) if target is not None else None
    if target is None or total is None:
        return Rate()
    return Rate(total / cores, None, f"catalogue: {target.name}, dma_bandwidth, a {cores}th", "inferred")


def capabilities_of(machine: Machine, cores: Sequence[Core], device: Device) -> Capabilities:
    """Return what one of those cores can do."""
    import torch

    limits = limits_of(machine, cores[0].lnc)
    if limits is None:
        return Capabilities(dtypes=frozenset())

    def dtypes(names: frozenset[str]) -> frozenset[torch.dtype]:
        return frozenset(getattr(torch, name) for name in names if hasattr(torch, name))

    known = dtypes(limits.dtypes or frozenset())
    return Capabilities(
        dtypes=known,
        reductions=MappingProxyType({op: dtypes(taken) & known for op, taken in (limits.reductions or {}).items()}),
        group_sizes=limits.world_sizes,
        group_size_multiple=limits.world_size_multiple,
        max_groups=limits.max_groups,
        max_streams=limits.max_streams,
        links=links_of(machine, cores, device),
        messages="staged",
        symmetric=bool(limits.symmetric_groups),
    )


def limits_of(machine: Machine, lnc: int) -> Limits | None:
    """Return what the catalogue says that programs may do on such a chip, at that LNC."""
    target = machine.generation.figures(lnc)
    return target.limits if target is not None else None


def links_of(machine: Machine, cores: Sequence[Core], device: Device) -> tuple[Link, ...]:
    """Return the links of one core to others of those: within its chip, and to chips that it is joined to.

    Through a switch it reaches every chip of the machine.
    """
    if device.index >= len(cores):
        return ()
    own = cores[device.index]
    across = between_chips(machine)
    inside = within_a_chip(machine, own.chip.cores // own.lnc)
    is_switched = has_switch(machine)
    found: list[Link] = []
    for index, core in enumerate(cores):
        if index == device.index:
            continue
        if core.chip.index == own.chip.index:
            found.append(Link(f"neuron:{index}", "chip", inside.bandwidth, inside.latency))
        elif is_switched or core.chip.index in (own.chip.neighbours or ()):
            found.append(Link(f"neuron:{index}", "neuronlink", across.bandwidth, across.latency))
    return tuple(found)


def has_switch(machine: Machine) -> bool:
    """Return whether a switch joins the machine's chips, as the documents say and what was found does not deny."""
    target = in_catalogue(machine.generation, len(machine.chips))
    known = all(chip.neighbours is not None for chip in machine.chips)
    return known and target is not None and target.figure("topology").value == "switch"


def _number(figure: Figure) -> float | None:
    value = figure.value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
