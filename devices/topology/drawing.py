"""A topology as an SVG picture: a torus as its grid, anything else with its devices round its switches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from devices.topology.graph import Node, Topology
from devices.topology.shapes import torus_shape

_STEP = 90.0
_RADIUS = 15.0
_COLOURS = {"device": "#2f6fde", "switch": "#e08a1e", "nic": "#5a9e4b", "host": "#8a63b8"}

Point = tuple[float, float]


def svg(topology: Topology) -> str:
    """Return a picture of a topology; what is behind a line or a node shows where a pointer rests on it."""
    places = _places(topology)
    left = min(x for x, _ in places.values()) - _STEP
    top = min(y for _, y in places.values()) - _STEP
    width = max(x for x, _ in places.values()) - left + _STEP
    height = max(y for _, y in places.values()) - top + _STEP
    box = f"{left:.0f} {top:.0f} {width:.0f} {height:.0f}"
    font = 'font-family="sans-serif" font-size="9" text-anchor="middle"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {font}>',
        f"<title>{escape(str(topology))}</title>",
        *_links(topology, places),
        *(_node(node, places[node.name]) for node in topology.nodes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _places(topology: Topology) -> dict[str, Point]:
    shape = torus_shape(topology)
    if shape is not None and len(shape) <= 3:
        return {node.name: _on_grid(place, shape) for place, node in enumerate(topology.devices)}
    count = len(topology.devices)
    radius = max(_STEP, count * 2.6 * _RADIUS / (2 * math.pi))
    places: dict[str, Point] = {}
    for place, node in enumerate(topology.devices):
        angle = 2 * math.pi * place / count - math.pi / 2
        places[node.name] = (radius * math.cos(angle), radius * math.sin(angle))
    others = [node.name for node in topology.nodes if not node.is_device]
    around: dict[str, list[str]] = {name: [] for name in others}
    for link in topology.links:
        if link.target in around:
            around[link.target].append(link.source)
    for turn, name in enumerate(others):
        near = [places[other] for other in around[name] if other in places and other not in around]
        x, y = (sum(each) / len(near) for each in zip(*near, strict=True)) if near else (0.0, 0.0)
        # Those in the same place, the middle most often, are moved apart.
        apart = 2 * math.pi * turn / len(others)
        away = 2.2 * _RADIUS * min(len(others) - 1, 6)
        places[name] = (0.6 * x + away * math.cos(apart), 0.6 * y + away * math.sin(apart))
    return places


def _on_grid(place: int, shape: tuple[int, ...]) -> Point:
    digits = []
    for length in reversed(shape):
        digits.append(place % length)
        place //= length
    column, row, layer = (*digits, 0, 0)[:3]
    wide = (shape[-1] + 1) * _STEP
    return column * _STEP + layer * wide, row * _STEP + layer * 0.3 * _STEP


def _links(topology: Topology, places: dict[str, Point]) -> Iterator[str]:
    """Yield a line for each pair of nodes that are joined; a bent one where it would cross the nodes between."""
    most = max((link.bandwidth for link in topology.links if link.bandwidth is not None), default=1)
    pairs: dict[tuple[str, str], list[str]] = {}
    widths: dict[tuple[str, str], float] = {}
    for link in topology.links:
        ends = min(link.source, link.target), max(link.source, link.target)
        rate = "unknown" if link.bandwidth is None else f"{link.bandwidth / 1e9:g} GB/s"
        status = f", {link.status}" if link.status else ""
        pairs.setdefault(ends, []).append(f"{link.source} to {link.target}: {link.kind} {rate}{status}")
        widths[ends] = max(widths.get(ends, 0.5), 4 * (link.bandwidth or 0) / most)
    for (one, other), said in pairs.items():
        (x, y), (u, v) = places[one], places[other]
        length = math.hypot(u - x, v - y)
        bend = (
            0.25 * length
            if length > 1.5 * _STEP and topology.node(one).is_device and topology.node(other).is_device
            else 0
        )
        across = ((y - v) / length * bend, (u - x) / length * bend) if length else (0.0, 0.0)
        middle = (x + u) / 2 + across[0], (y + v) / 2 + across[1]
        yield (
            f'<path d="M{x:.1f} {y:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {u:.1f} {v:.1f}" fill="none" stroke="#9aa4b2" '
            f'stroke-width="{widths[one, other]:.2f}"><title>{escape(chr(10).join(said))}</title></path>'
        )


def _node(node: Node, place: Point) -> str:
    x, y = place
    told = ", ".join([node.kind, *(f"{key} {value}" for key, value in node.attributes.items())])
    label = node.name.rpartition(":")[2] if node.is_device else node.name
    side = 2 * _RADIUS
    if node.is_device:
        shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS:g}"'
    else:
        corner = f'x="{x - _RADIUS:.1f}" y="{y - _RADIUS:.1f}"'
        shape = f'<rect {corner} width="{side:g}" height="{side:g}" rx="3"'
    return (
        f'<g data-name={quoteattr(node.name)}>{shape} fill="{_COLOURS[node.kind]}"/>'
        f'<text x="{x:.1f}" y="{y + 3:.1f}" fill="#fff">{escape(label[:9])}</text>'
        f"<title>{escape(node.name)}: {escape(told)}</title></g>"
    )
