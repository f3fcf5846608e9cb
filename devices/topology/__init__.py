"""The machine as a graph: devices, switches and links, how fast a collective can be on it, and schedules that are.

A `Topology` is plain data: discovered, built, or read from a file. Nothing here imports torch before it moves tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from devices.topology.graph import Link, Node, Topology, both

if TYPE_CHECKING:
    from devices.topology.bounds import Bound, bound
    from devices.topology.builders import fat_tree, machines, networked, rails, ring, switch, torus
    from devices.topology.calibration import Calibration, read_calibration
    from devices.topology.calls import traffic
    from devices.topology.clusters import Cluster
    from devices.topology.cost import predict
    from devices.topology.discovery import discover
    from devices.topology.estimate import Estimate, Interval
    from devices.topology.files import read, write
    from devices.topology.laying import Layout, layout, layout_seconds
    from devices.topology.machine import Machine
    from devices.topology.model import Model
    from devices.topology.nesting import Nesting, nest
    from devices.topology.planning import Choice, Choices, choices
    from devices.topology.replaying import Replayed, replay
    from devices.topology.service import Service, serving
    from devices.topology.synthesis import Plan, synthesize
    from devices.topology.targets import of_target
    from devices.topology.training import Run, training_step
    from devices.topology.unequal import Split, shares

_LAZY = {
    **dict.fromkeys(("Bound", "bound"), "devices.topology.bounds"),
    **dict.fromkeys(
        ("fat_tree", "machines", "networked", "rails", "ring", "switch", "torus"), "devices.topology.builders"
    ),
    **dict.fromkeys(("Calibration", "read_calibration"), "devices.topology.calibration"),
    "traffic": "devices.topology.calls",
    "Cluster": "devices.topology.clusters",
    "predict": "devices.topology.cost",
    "discover": "devices.topology.discovery",
    **dict.fromkeys(("Estimate", "Interval"), "devices.topology.estimate"),
    **dict.fromkeys(("read", "write"), "devices.topology.files"),
    **dict.fromkeys(("Plan", "synthesize"), "devices.topology.synthesis"),
    "of_target": "devices.topology.targets",
    **dict.fromkeys(("Replayed", "replay"), "devices.topology.replaying"),
    **dict.fromkeys(("Split", "shares"), "devices.topology.unequal"),
    "Machine": "devices.topology.machine",
    "Model": "devices.topology.model",
    **dict.fromkeys(("Nesting", "nest"), "devices.topology.nesting"),
    **dict.fromkeys(("Layout", "layout", "layout_seconds"), "devices.topology.laying"),
    **dict.fromkeys(("Choice", "Choices", "choices"), "devices.topology.planning"),
    **dict.fromkeys(("Service", "serving"), "devices.topology.service"),
    **dict.fromkeys(("Run", "training_step"), "devices.topology.training"),
}

__all__ = [
    "Bound",
    "Calibration",
    "Choice",
    "Choices",
    "Cluster",
    "Estimate",
    "Interval",
    "Layout",
    "Link",
    "Machine",
    "Model",
    "Nesting",
    "Node",
    "Plan",
    "Replayed",
    "Run",
    "Service",
    "Split",
    "Topology",
    "both",
    "bound",
    "choices",
    "discover",
    "fat_tree",
    "layout",
    "layout_seconds",
    "machines",
    "nest",
    "networked",
    "of_target",
    "predict",
    "rails",
    "read",
    "read_calibration",
    "replay",
    "ring",
    "serving",
    "shares",
    "switch",
    "synthesize",
    "torus",
    "traffic",
    "training_step",
    "write",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _LAZY:
        from devices.errors import did_you_mean

        raise AttributeError(f"module 'devices.topology' has no attribute {name!r}{did_you_mean(name, __all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
