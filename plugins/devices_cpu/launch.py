"""What ranks on CPUs are to be started with: how many threads each has, and which interface gloo takes."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from devices import Variable

_THREADS = "OMP_NUM_THREADS"
_INTERFACE = "GLOO_SOCKET_IFNAME"
_ROUTES = Path("/proc/net/route")


def variables(ranks: int | None, environment: Mapping[str, str], routes: Path = _ROUTES) -> Sequence[Variable]:
    """Return the variables that are the same for all ranks.

    Args:
        ranks: how many there are on this host; what LOCAL_WORLD_SIZE says, or else one, if None.
        environment: the variables that are set.
        routes: Linux's table of routes.
    """
    told = environment.get("LOCAL_WORLD_SIZE", "")
    count = ranks if ranks is not None else int(told) if told.isdecimal() and len(told) < 7 else 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = max(1, cpus // max(1, count))
    many = f"{count} rank{'s' if count > 1 else ''}"
    found = [Variable(_THREADS, str(each), f"{cpus} CPUs over {many}; torchrun sets 1 for several where it is not set")]
    names = interfaces()
    chosen = default_interface(routes)
    if len(names) > 1 and chosen in names:
        why = (
            f"of {', '.join(names)} the one with the default route: between hosts gloo else takes whichever the host's "
            "own name stands for"
        )
        found.append(Variable(_INTERFACE, chosen, why))
    return found


def contradictions(environment: Mapping[str, str]) -> Sequence[str]:
    """Return a sentence for each setting that contradicts this host."""
    wanted = [name.strip() for name in environment.get(_INTERFACE, "").split(",") if name.strip()]
    known = [name for _, name in socket.if_nameindex()]
    return [
        f"{_INTERFACE}={environment[_INTERFACE]}: this host has no interface {name!r}; there are {', '.join(known)}"
        for name in wanted
        if name not in known
    ]


def interfaces() -> list[str]:
    """Return the names of the host's network interfaces, but for the loopback."""
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def default_interface(routes: Path = _ROUTES) -> str:
    """Return the interface that the default route goes by; "" if there is none."""
    try:
        lines = routes.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return ""
    # Of each route: the interface, then the address that it leads to, in hexadecimal.
    rows = [line.split() for line in lines]
    return next((row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"), "")
