"""What figures of one target must not say of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from devices.catalogue.figures import Figure, fault
from devices.catalogue.limits import Limits
from devices.catalogue.reader import Entry
from devices.catalogue.units import dimensions


def check_cores(chip: Entry) -> None:
    """Refuse settings of LNC that are not all known or all absent, or that do not divide the cores."""
    cores, allowed, default = (chip.figures[name] for name in ("cores", "lnc", "default_lnc"))
    if allowed.absent != default.absent or (cores.absent is None) != (allowed.absent is None):
        fault(chip.file, "figures.lnc", "", "contradicts cores and default_lnc: all three have a value, or none has")
    if not isinstance(allowed.value, tuple):
        return
    listed = ", ".join(map(str, allowed.value))
    if default.value not in allowed.value:
        fault(chip.file, "figures.default_lnc", "value", f"{default.value} is not one of lnc, {listed}")
    if any(math.fmod(number(cores), int(one)) for one in allowed.value):
        fault(chip.file, "figures.lnc", "value", f"{listed} do not all divide the {cores.value} cores")


def check_figures(entry: Entry, chips: int, of: Entry | None) -> None:
    """Refuse figures of an entry that contradict each other, the number of its chips, or the entry it is made of."""
    for name, both in entry.figures.items():
        one = entry.figures.get(f"{name}_one_way")
        if one is not None and both.value is not None and number(one) > number(both):
            what = f"{one.value} contradicts {name}, which is {both.value} in all"
            fault(entry.file, f"figures.{name}_one_way", "value", what)
    topology = entry.figures.get("topology")
    sizes = dimensions(topology.value) if topology is not None and isinstance(topology.value, str) else ()
    if topology is not None and sizes and math.prod(sizes) != chips:
        what = f"{topology.value!r} contradicts members: there are {chips} chips"
        fault(entry.file, "figures.topology", "value", what)
    most = entry.figures.get("chips")
    if most is not None and most.value is not None and chips > number(most):
        what = (
            f"{entry.figures['members'].value} contradicts chips: that is {chips} chips, and {most.value} is the most"
        )
        fault(entry.file, "figures.members", "value", what)
    whole = entry.figures.get("nic_bandwidth")
    part = of.figures.get("nic_bandwidth") if of is not None else None
    if whole is None or part is None or of is None or whole.value is None or part.value is None:
        return
    times = number(entry.figures["members"])
    if number(whole) != times * number(part):
        what = f"{whole.value} contradicts {times} times the {part.value} of {of.name}"
        fault(entry.file, "figures.nic_bandwidth", "value", what)


def check_dtypes(chip: Entry, software: Entry, limits: Limits) -> None:
    """Refuse dtypes that are moved or reduced and that tensors may not have."""
    if limits.dtypes is None:
        return
    moved = {"limits.moved_dtypes": limits.moved_dtypes or frozenset()}
    reduced = {f"limits.reductions, {op}": taken for op, taken in (limits.reductions or {}).items()}
    for table, dtypes in (moved | reduced).items():
        if unknown := sorted(dtypes - limits.dtypes):
            what = f"{', '.join(unknown)}: tensors on {chip.name} may not have that"
            fault(software.file, table, "value", what)


def check_ruled_once(ruling: str, name: str, ruled: Sequence[Figure], chip: Entry, software: Entry) -> None:
    """Refuse a chip's ruling on what its software rules on, other than more dtypes for an op that it has."""
    if len(ruled) < 2:
        return
    if ruling != "reductions":
        fault(chip.file, f"limits.{ruling}", "names", f"{software.file.name} rules on {name!r} already")
    listed = [dtype for figure in ruled for dtype in (figure.value if isinstance(figure.value, tuple) else ())]
    if len(set(listed)) < len(listed) or any(figure.value is None for figure in ruled):
        what = f"repeats or contradicts what {software.file.name} says of {name!r}"
        fault(chip.file, f"limits.{ruling}", "value", what)


def number(figure: Figure) -> int | float:
    """Return a figure's value, 0 if there is none."""
    return figure.value if isinstance(figure.value, (int, float)) else 0
