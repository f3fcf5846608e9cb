"""The catalogue's files: what each kind of entry must state, and their reading, which lets nothing pass.

An entry states every figure of its kind. What is not known has `unknown = "why"` for a value, and the date until which
it was looked for; what does not exist has `none = "why"`, with source, date and status as any other. A **ruling** is
one figure about several names: which verbs there are, which dtypes, what each reduce op takes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from devices.catalogue.figures import Figure, check_keys, fault, read_figure, unstated
from devices.catalogue.said import Assumption, Claim, read_assumptions, read_claims
from devices.catalogue.units import DTYPES, OPS, VERBS
from devices.errors import did_you_mean

SOURCES = "sources.toml"
"""The file that says in full what the figures' source keys stand for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What an entry of one kind states.

    Args:
        refers: the keys that name another entry, and of which kinds it may be.
        figures: the figures of hardware, and their units.
        more: figures that an entry may leave out; then nothing is known of them. Files that were written before there
            were any have none.
        limits: the limits on programs that are figures, and their units.
        rulings: the limits that are rulings: their unit, the names that they are about, and whether each name
            must be ruled on.
    """

    refers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    rulings: Mapping[str, tuple[str, tuple[str, ...], bool]] = field(default_factory=dict)


KINDS = {
    # What runs on a chip and answers torch: a process group and its runtime.
    "software": Kind(
        limits={
            "device_type": "name",
            "process_group": "name",
            "moved_dtypes": "dtypes",
            "uneven_splits": "yes or no",
            "empty_tensors": "yes or no",
            "subgroup_barrier": "yes or no",
            "world_sizes": "counts",
            "world_size_multiple": "count",
            "whole_nodes": "yes or no",
            "symmetric_groups": "yes or no",
            "max_groups": "count",
            "max_streams": "count",
        },
        rulings={
            "dtypes": ("yes or no", DTYPES, False),
            "verbs": ("yes or no", VERBS, True),
            "reductions": ("dtypes", OPS, True),
        },
    ),
    "chip": Kind(
        refers={"software": ("software",)},
        figures={
            "cores": "count",
            "lnc": "counts",
            "default_lnc": "count",
            "memory": "bytes",
            "memory_bandwidth": "bytes/s",
            "dma_bandwidth": "bytes/s",
            "on_chip_memory": "bytes",
            "collective_cores": "count",
            "links": "count",
            "link_bandwidth": "bytes/s",
            "link_bandwidth_one_way": "bytes/s",
            "fp4": "flop/s",
            "fp8": "flop/s",
            "bf16": "flop/s",
            "bf16_sparse": "flop/s",
            "fp32": "flop/s",
        },
        more={
            "copy_bandwidth_one_way": "bytes/s",
            "link_latency": "s",
            "host_bandwidth_one_way": "bytes/s",
            "power": "W",
        },
        limits={"float8_max": "magnitude"},
        # What the software leaves to the chip: more dtypes, and more of them for a reduce op.
        rulings={"dtypes": ("yes or no", DTYPES, False), "reductions": ("dtypes", OPS, False)},
    ),
    # A machine is what an operating system runs on: an instance, a server, a tray.
    "machine": Kind(
        refers={"of": ("chip",)},
        figures={
            "members": "count",
            "topology": "shape",
            "link_bandwidth": "bytes/s",
            "link_bandwidth_one_way": "bytes/s",
            "link_latency": "s",
            "nics": "count",
            "nic_bandwidth": "bytes/s",
            "nic_latency": "s",
            "host_cpus": "count",
            "host_memory": "bytes",
        },
        more={"network": "name", "switch_reduces": "yes or no", "power": "W", "price": "USD/h"},
    ),
    # Several machines in one scale-up domain. Links are per chip: to other machines, and of these to other racks.
    "ultraserver": Kind(
        refers={"of": ("machine",)},
        figures={
            "members": "count",
            "topology": "shape",
            "link_bandwidth": "bytes/s",
            "link_bandwidth_one_way": "bytes/s",
            "rack_link_bandwidth": "bytes/s",
            "rack_link_bandwidth_one_way": "bytes/s",
            "nic_bandwidth": "bytes/s",
        },
        more={
            "racks": "count",
            "link_latency": "s",
            "switch_reduces": "yes or no",
            "power": "W",
            "price": "USD/h",
        },
    ),
    # Many machines or UltraServers on one network, which is all that joins them.
    "cluster": Kind(
        refers={"of": ("machine", "ultraserver")},
        figures={
            "members": "count",
            "chips": "count",
            "network": "name",
            "oversubscription": "times",
            "nic_latency": "s",
        },
    ),
    # One scale-up domain of chips of two makers. How many are of which is for whoever builds one to say.
    "domain": Kind(
        refers={"of": ("chip",), "beside": ("chip",)},
        figures={
            "members": "count",
            "topology": "shape",
            "link_bandwidth": "bytes/s",
            "link_bandwidth_one_way": "bytes/s",
            "link_latency": "s",
            "switch_reduces": "yes or no",
            "coherent": "yes or no",
            "atomics": "yes or no",
            "nic_bandwidth": "bytes/s",
        },
    ),
}
"""The kinds of entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of the catalogue."""

    file: Path
    name: str
    kind: str
    title: str
    aliases: tuple[str, ...]
    speculative: bool
    claims: tuple[Claim, ...]
    assumptions: tuple[Assumption, ...]
    refers: Mapping[str, str]
    figures: Mapping[str, Figure]
    limits: Mapping[str, Figure]
    rulings: Mapping[str, tuple[Figure, ...]]


def read_sources(file: Path, text: str | None = None) -> dict[str, str]:
    """Return what each source key stands for; `text` is what the file would hold, where there is none."""
    found = _parse(file, text)
    for key, text in found.items():
        if not isinstance(text, str) or not text.strip():
            fault(file, "", key, f"must be a text, not {text!r}")
    return found


def read_entry(file: Path, sources: Mapping[str, str], text: str | None = None) -> Entry:
    """Return the entry that a file states, or would if there were one with that text; its name is the file's."""
    found = _parse(file, text)
    name = file.name.removesuffix(".toml")
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        fault(file, "", "", "the file's name must be lower-case letters, digits, '.' and '-'")
    if "kind" not in found:
        fault(file, "", "kind", "is missing")
    if not isinstance(found["kind"], str) or found["kind"] not in KINDS:
        near = did_you_mean(str(found["kind"]), KINDS)
        fault(file, "", "kind", f"must be one of {', '.join(KINDS)}, not {found['kind']!r}{near}")
    kind = KINDS[found["kind"]]
    tables = {"figures": kind.figures, "limits": {**kind.limits, **kind.rulings}}
    needed = ("kind", "title", *kind.refers, *(table for table, keys in tables.items() if keys))
    check_keys(file, "", found, (*needed, "aliases", "speculative", "claims", "assumptions"), needed)
    limits = dict(_table(file, found, "limits"))
    rulings = {ruling: limits.pop(ruling) for ruling in kind.rulings if ruling in limits}
    for ruling, (_, _, is_needed) in kind.rulings.items():
        if ruling not in rulings and is_needed:
            fault(file, "limits", ruling, "is missing")
    speculative = found.get("speculative", False)
    if not isinstance(speculative, bool):
        fault(file, "", "speculative", f"must be true or false, not {speculative!r}")
    assumptions = read_assumptions(file, found.get("assumptions", []), sources)
    if assumptions and not speculative:
        fault(file, "assumptions", "", "goes with speculative = true: of what there is, nothing is assumed")
    return Entry(
        file=file,
        name=name,
        kind=found["kind"],
        title=_name(file, "title", found["title"]),
        aliases=_aliases(file, name, found.get("aliases", [])),
        speculative=speculative,
        claims=read_claims(file, found.get("claims", []), {**kind.figures, **kind.more}, sources),
        assumptions=assumptions,
        refers=MappingProxyType({key: _name(file, key, found[key]) for key in kind.refers}),
        figures=_figures(file, "figures", _table(file, found, "figures"), kind.figures, sources, kind.more),
        limits=_figures(file, "limits", limits, kind.limits, sources),
        rulings=MappingProxyType(
            {
                ruling: _rulings(file, ruling, rulings.get(ruling, []), *rule, sources)
                for ruling, rule in kind.rulings.items()
            }
        ),
    )


def _parse(file: Path, text: str | None) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8") if text is None else text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fault(file, "", "", f"is no TOML: {error}")
    except OSError as error:
        fault(file, "", "", f"cannot be read: {error}")


def _table(file: Path, found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = found.get(key, {})
    if not isinstance(table, dict):
        fault(file, "", key, "must be a table")
    return table


def _name(file: Path, key: str, found: object) -> str:
    if not isinstance(found, str) or not found.strip():
        fault(file, "", key, f"must be a text, not {found!r}")
    return found


def _aliases(file: Path, name: str, found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(alias, str) and alias for alias in found):
        fault(file, "", "aliases", f"must be a list of names, not {found!r}")
    if len({name, *found}) <= len(found):
        fault(file, "", "aliases", "names something twice")
    return tuple(found)


def _figures(
    file: Path,
    table: str,
    found: Mapping[str, Any],
    units: Mapping[str, str],
    sources: Mapping[str, str],
    more: Mapping[str, str] = MappingProxyType({}),
) -> Mapping[str, Figure]:
    check_keys(file, table, found, (*units, *more), units)
    return MappingProxyType(
        {
            key: read_figure(file, f"{table}.{key}", found[key], unit, sources)
            if key in found
            else unstated(file, f"{table}.{key}", unit)
            for key, unit in {**units, **more}.items()
        }
    )


def _rulings(
    file: Path,
    ruling: str,
    found: object,
    unit: str,
    known: tuple[str, ...],
    is_needed: bool,
    sources: Mapping[str, str],
) -> tuple[Figure, ...]:
    table = f"limits.{ruling}"
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        fault(file, table, "", "must be an array of tables")
    ruled: list[str] = []
    figures = []
    for one in found:
        names = one.get("names")
        if not isinstance(names, list) or not names:
            fault(file, table, "names", f"must be a list of names, not {names!r}")
        for name in names:
            if name not in known:
                near = did_you_mean(name, known) if isinstance(name, str) else ""
                fault(file, table, "names", f"no such name as {name!r}{near}")
            if name in ruled:
                fault(file, table, "names", f"{name!r} is ruled on twice")
            ruled.append(name)
        rest = {key: value for key, value in one.items() if key != "names"}
        figures.append(read_figure(file, table, rest, unit, sources, tuple(names)))
    if is_needed and (missing := [name for name in known if name not in ruled]):
        fault(file, table, "names", f"says nothing of {', '.join(missing)}")
    return tuple(figures)
