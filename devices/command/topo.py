"""`devices topo`: a topology, this host's or another, in the terminal and as a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from devices._option import Option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devices.topology import Cluster, Topology

MATRIX = 20
"""Up to so many nodes, what lies between every two is shown; of more, how many links there are of each sort."""


def add(option: Option) -> None:
    """Add the options of the command."""
    option("--svg", "draw a picture there", metavar="FILE")
    option("--bounds", "say what each collective reaches at best, and why", action="store_true")
    option("--members", "of a cluster the first N UltraServers or machines", type=int, metavar="N")
    option("--chips", "of a domain of two kinds, how many are of each", type=_chips, metavar="A,B")
    option("what", "a target of the catalogue or a .json or .toml file; this host if left out", nargs="?")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from devices.topology.drawing import svg
    from devices.topology.files import to_json

    found = _asked(options)
    if options.svg:
        Path(options.svg).write_text(svg(_whole(found)), encoding="utf-8")
    if options.json:
        print(to_json(_whole(found)))
    else:
        _show(found, options.bounds)
    return 0


def _asked(options: argparse.Namespace) -> Topology | Cluster:
    from devices.errors import ArgumentError
    from devices.topology import Cluster, discover, of_target, read

    is_target = options.what is not None and not options.what.endswith((".json", ".toml"))
    if options.chips is not None and not is_target:
        raise ArgumentError("--chips goes with a target that is a domain of two kinds of chips")
    found: Topology | Cluster
    if options.what is None:
        found = discover()
    elif is_target:
        found = of_target(options.what, chips=options.chips)
    else:
        found = read(options.what)
    if options.members is None:
        return found
    if not isinstance(found, Cluster):
        raise ArgumentError(f"--members goes with a cluster, and {found} is none")
    return found.part(options.members)


def _whole(topology: Topology | Cluster) -> Topology:
    from devices.topology import Cluster

    return topology.part(topology.times) if isinstance(topology, Cluster) else topology


def _chips(text: str) -> tuple[int, int]:
    try:
        one, other = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"two numbers of chips are written as 36,36, not {text!r}") from None
    return one, other


def _show(topology: Topology | Cluster, with_bounds: bool) -> None:
    from rich.text import Text

    from devices import _terminal
    from devices.topology import Cluster

    # Of a cluster what is seen of one member is counted so many times.
    times = topology.times if isinstance(topology, Cluster) else 1
    whole = topology.part(1) if isinstance(topology, Cluster) else topology
    kinds = {kind: sum(node.kind == kind for node in whole.nodes) for kind in ("device", "switch", "nic", "host")}
    if times > 1:
        kinds["switch"] -= 1
    counted = ", ".join(f"{count * times:,} {_plural(kind, count * times)}" for kind, count in kinds.items() if count)
    if times > 1:
        counted += f", {times:,} members, a network"
    sections: list[tuple[str, RenderableType]] = [(topology.name or "Topology", Text(counted or "nothing"))]
    if whole.links:
        if len(whole.nodes) <= MATRIX and times == 1:
            sections.append(("GB/s from the node on the left to the one above", _matrix(whole)))
        sections.append(("Links", _sorts(whole, times)))
        if origins := dict.fromkeys(link.origin for link in whole.links if link.origin):
            sections.append(("Where the figures are from", Text("\n".join(origins))))
    if with_bounds:
        sections.append(("At best, by the size of the data", Text("\n".join(_bounds(_whole(topology))))))
    _terminal.show(sections, sys.stdout)


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}es" if kind == "switch" else f"{kind}s"


def _matrix(topology: Topology) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for node in topology.nodes:
        label = node.name.rpartition(":")[2] if node.is_device else node.name
        table.add_column(label, justify="right", no_wrap=True)
    for node in topology.nodes:
        rates: dict[str, str] = {}
        for link in topology.links_from(node.name):
            rate = "?" if link.bandwidth is None else f"{link.bandwidth / 1e9:g}"
            rates[link.target] = f"{rates[link.target]}+{rate}" if link.target in rates else rate
        cells = ("" if other is node else rates.get(other.name, "·") for other in topology.nodes)
        table.add_row(node.name, *cells)
    return table


def _sorts(topology: Topology, times: int) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("links", "from", "to", "kind", "GB/s one way", "latency", "status"):
        table.add_column(title, justify="right" if title in ("links", "GB/s one way", "latency") else "left")
    sorts: dict[tuple[str, ...], int] = {}
    sort: tuple[str, ...]
    for link in topology.links:
        sort = (
            topology.node(link.source).kind,
            topology.node(link.target).kind,
            link.kind,
            "?" if link.bandwidth is None else f"{link.bandwidth / 1e9:g}",
            "?" if link.latency is None else f"{link.latency * 1e6:g} us",
            link.status or "?",
        )
        sorts[sort] = sorts.get(sort, 0) + 1
    for sort, count in sorts.items():
        table.add_row(f"{count * times:,}", *sort)
    return table


def _bounds(topology: Topology) -> Iterator[str]:
    from devices.topology import bound
    from devices.topology.bounds import VERBS

    for verb in VERBS:
        found = bound(topology, verb)
        yield f"{verb:15}{found.bytes_per_second / 1e9:10.3f} GB/s  {str(found).partition(': ')[2].partition(': ')[2]}"
