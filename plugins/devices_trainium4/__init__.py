"""Trainium4, and Trainium4 beside NVIDIA GPUs on NVLink Fusion. Speculative: no such hardware is out.

It is chosen by name and by nothing else. What is announced is stated as announced, what follows from that by arithmetic
as inferred, and what is not known as not known; what emulation must take for granted beyond that is a table of
assumptions, each with the announcement that leads to it, the other choices, and what changes if it is wrong.

* `targets/`: what is announced, and the table.
* `backend.py`: the backend, which is absent everywhere.
* `fusion.py`: what joins it with GPUs: domains, limits, and which way a group goes under each assumption.
* `memory.py`: the memory that both reach, with what is not promised of it refused.
* `prediction.py`: bytes over each link, and seconds.
"""

from __future__ import annotations

from pathlib import Path

from devices import Backend, hookimpl
from devices_trainium4.backend import Trainium4Backend


@hookimpl
def devices_backend() -> Backend:
    return Trainium4Backend()


@hookimpl
def devices_targets() -> Path:
    return Path(__file__).parent / "targets"
