"""Trainium4, and Trainium4 beside NVIDIA GPUs on NVLink Fusion, as targets. Speculative: no such hardware is out.

A target is chosen by name and by nothing else. What is announced is stated as announced, what follows from that by
arithmetic as inferred, and what is not known as not known; what emulation must take for granted beyond that is a table
of assumptions, each with the announcement that leads to it, the other choices, and what changes if it is wrong.
"""

from __future__ import annotations

from pathlib import Path

from devices import hookimpl


@hookimpl
def devices_targets() -> Path:
    return Path(__file__).parent / "targets"
