"""`devices topo`: a topology, this host's or another, in the terminal and as a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devices.topology import Topology

MATRIX = 20
"""Up to so many nodes, what lies between every two is shown; of more, how many links there are of each sort."""

OPTIONS = ("--svg", "--bounds")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--svg", metavar="FILE", help="draw a picture there")
    parser.add_argument("--bounds", action="store_true", help="say what each collective reaches at best, and why")
    parser.add_argument("--json", action="store_true", help="print the topology as JSON")
    parser.add_argument(
        "what", nargs="?", help="a target of the catalogue or a .json or .toml file; this host if left out"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from devices.errors import DevicesError
    from devices.topology import discover, of_target, read
    from devices.topology.drawing import svg
    from devices.topology.files import to_json

    try:
        if options.what is None:
            found = discover()
        elif options.what.endswith((".json", ".toml")):
            found = read(options.what)
        else:
            found = of_target(options.what)
        if options.svg:
            Path(options.svg).write_text(svg(found), encoding="utf-8")
        if options.json:
            print(to_json(found))
        else:
            _show(found, options.bounds)
    except (DevicesError, OSError) as error:
        print(f"devices topo: {error}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    return 0


def _show(topology: Topology, with_bounds: bool) -> None:
    from rich.text import Text

    from devices import _terminal

    kinds = {kind: sum(node.kind == kind for node in topology.nodes) for kind in ("device", "switch", "nic", "host")}
    counted = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in kinds.items() if count)
    sections: list[tuple[str, RenderableType]] = [(topology.name or "Topology", Text(counted or "nothing"))]
    if topology.links:
        if len(topology.nodes) <= MATRIX:
            sections.append(("GB/s from the node on the left to the one above", _matrix(topology)))
        sections.append(("Links", _sorts(topology)))
        if origins := dict.fromkeys(link.origin for link in topology.links if link.origin):
            sections.append(("Where the figures are from", Text("\n".join(origins))))
    if with_bounds:
        sections.append(("At best, by the size of the data", Text("\n".join(_bounds(topology)))))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
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


def _sorts(topology: Topology) -> RenderableType:
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
        table.add_row(str(count), *sort)
    return table


def _bounds(topology: Topology) -> Iterator[str]:
    from devices.topology import bound
    from devices.topology.bounds import VERBS

    for verb in VERBS:
        found = bound(topology, verb)
        yield f"{verb:15}{found.bytes_per_second / 1e9:10.3f} GB/s  {str(found).partition(': ')[2].partition(': ')[2]}"
