"""What each limit of a target is, and the figures that it is from."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from devices.catalogue.checks import check_ruled_once, number
from devices.catalogue.figures import Figure, Provenance
from devices.catalogue.reader import Entry
from devices.catalogue.units import DTYPES, OPS, VERBS

SETS = ("moved_dtypes", "world_sizes")
"""The limits that a file lists and that are sets."""


def find_origins(parts: Sequence[Entry], software: Entry, lnc: int | None) -> dict[str, Provenance]:
    """Return the limits of an entry, each of `parts` being made of the next and the last being a chip."""
    chip = parts[-1]
    found = [
        Provenance("chip", chip.name, (), f"the chip of {parts[0].name}"),
        *_shape(parts),
        *_devices(chip, lnc),
        *_rulings(chip, software),
    ]
    for name, figure in {**software.limits, **chip.limits}.items():
        value = frozenset(figure.value) if name in SETS and isinstance(figure.value, tuple) else figure.value
        found.append(Provenance(name, value, (figure,)))
    return {origin.field: origin for origin in found}


def _shape(parts: Sequence[Entry]) -> tuple[Provenance, Provenance]:
    """Return the number of nodes, which are machines, and of the chips of each."""
    counted = {entry.kind: entry.figures["members"] for entry in parts[:-1]}
    in_node = counted.pop("machine", None) or counted.pop("domain", None)
    nodes = 1
    for figure in counted.values():
        nodes *= int(number(figure))
    how = "" if len(counted) == 1 else " x ".join(str(figure.value) for figure in counted.values()) or "one node"
    return (
        Provenance("nodes", nodes, tuple(counted.values()), how),
        Provenance("chips_per_node", 1, (), "a chip alone")
        if in_node is None
        else Provenance("chips_per_node", in_node.value, (in_node,)),
    )


def _devices(chip: Entry, lnc: int | None) -> tuple[Provenance, Provenance, Provenance]:
    """Return how a chip is cut into devices, and the memory of each."""
    cores, settings, default, memory = (chip.figures[name] for name in ("cores", "lnc", "default_lnc", "memory"))
    if lnc is not None:
        count = int(number(cores)) // lnc
        share = int(number(memory)) // count if memory.value is not None else None
        return (
            Provenance("lnc", lnc, (settings, default)),
            Provenance("ranks_per_chip", count, (cores, settings), f"{cores.value} cores / LNC {lnc}"),
            Provenance("memory_per_rank", share, (memory, cores, settings), f"the chip's memory / {count} ranks"),
        )
    is_whole = cores.absent == "none"
    return (
        Provenance("lnc", None, (settings,)),
        Provenance("ranks_per_chip", 1 if is_whole else None, (cores,)),
        Provenance("memory_per_rank", memory.value if is_whole else None, (memory, cores)),
    )


def _rulings(chip: Entry, software: Entry) -> list[Provenance]:
    """Return what the software and the chip rule on, as wholes and name by name."""
    found = []
    for ruling, names in (("dtypes", DTYPES), ("verbs", VERBS), ("reductions", OPS)):
        figures = (*software.rulings[ruling], *chip.rulings.get(ruling, ()))
        # Of what nobody has said anything yet, nothing is refused.
        nothing_known = bool(figures) and all(figure.absent == "unknown" for figure in figures)
        by_name: dict[str, Any] = {}
        for name in names:
            ruled = tuple(figure for figure in figures if name in figure.names)
            check_ruled_once(ruling, name, ruled, chip, software)
            allowed = _dtypes(ruled) if ruling == "reductions" else any(figure.value is True for figure in ruled)
            by_name[name] = None if nothing_known else allowed
            how = "" if ruled else f"no source for {chip.name} names it"
            found.append(Provenance(f"{ruling}.{name}", by_name[name], ruled, how))
        there = {name: value for name, value in by_name.items() if value}
        whole = MappingProxyType(there) if ruling == "reductions" else frozenset(there)
        found.append(Provenance(ruling, None if nothing_known else whole, figures))
    return found


def _dtypes(ruled: Sequence[Figure]) -> frozenset[str]:
    return frozenset(str(one) for figure in ruled if isinstance(figure.value, tuple) for one in figure.value)
