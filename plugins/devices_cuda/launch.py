"""What ranks on GPUs are to be started with: which GPUs, in which order, and the interface by which they meet."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from devices import Variable
from devices.errors import UnsupportedError
from devices_cuda.machine import Machine
from devices_cuda.presence import AbsentError, host
from devices_cuda.visibility import VARIABLE, Seen, parts, visible

INTERFACE = "NCCL_SOCKET_IFNAME"
ORDER = "CUDA_DEVICE_ORDER"
_ROUTES = Path("/proc/net/route")


def this_host() -> Machine:
    """Return what NVML says of this host.

    Raises:
        UnsupportedError: there is no GPU to start ranks on.
    """
    try:
        return host()
    except AbsentError as absent:
        raise UnsupportedError(str(absent)) from absent


def local_ranks(machine: Machine, environment: Mapping[str, str]) -> int:
    """Return how many ranks a host has if nobody says otherwise: one for each GPU or instance that is visible."""
    return len(_left(machine, environment))


def shared_variables(
    machine: Machine, environment: Mapping[str, str], ranks: int | None, routes: Path = _ROUTES
) -> list[Variable]:
    """Return the variables that are the same for all ranks of a host.

    Args:
        machine: what NVML says of the host.
        environment: the variables that are set.
        ranks: how many there are on the host; one for each GPU or instance that is visible if None.
        routes: Linux's table of routes.
    """
    left = _left(machine, environment)
    count = len(left) if ranks is None else ranks
    found: list[Variable] = []
    if len({(gpu.name, gpu.capability) for gpu in machine.gpus}) > 1:
        found.append(Variable(ORDER, "PCI_BUS_ID", "the GPUs differ, and CUDA else numbers them by how fast they are"))
    if count < len(left) and not _has_instances(left):
        mine = _block(left, count)
        why = f"{_many(count)}, and {len(left)} GPUs: those with most free memory that follow each other"
        found.append(Variable(VARIABLE, ",".join(map(_name, mine)), why))
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    chosen = default_interface(routes)
    if len(names) > 1 and chosen in names and not environment.get(INTERFACE):
        why = (
            f"of {', '.join(names)} the one with the default route, where NCCL's ranks meet, and by which their data "
            "goes between hosts that have no InfiniBand; NCCL else takes the first that is not the loopback or Docker's"
        )
        found.append(Variable(INTERFACE, f"={chosen}", why))
    return found


def own_variables(
    machine: Machine, environment: Mapping[str, str], ranks: int | None, local_rank: int
) -> list[Variable]:
    """Return the variables that one rank alone has: under MIG its instance, for a process sees one and nothing else."""
    left = _left(machine, environment)
    if not _has_instances(left):
        return []
    if ranks is not None and local_rank >= ranks:
        raise UnsupportedError(f"there is no local rank {local_rank}, with {_many(ranks)}")
    # Who has one instance alone has been given it.
    if ranks is None and local_rank >= len(left) > 1:
        raise UnsupportedError(
            f"there is no local rank {local_rank}: {len(left)} MIG instances and GPUs are visible, and by `devices env "
            "--ranks` several ranks share one"
        )
    mine = left[local_rank % len(left)]
    what = "MIG instance" if mine.instance is not None else "GPU"
    why = f"this rank's {what}, {local_rank % len(left)} of {len(left)}; a process sees one MIG instance and no more"
    return [Variable(VARIABLE, _name(mine), why)]


def contradictions(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting of the network that contradicts this host."""
    setting = environment.get(INTERFACE, "").strip()
    known = [name for _, name in socket.if_nameindex()]
    # What is left out need not be there.
    if not setting or setting.startswith("^"):
        return
    is_exact = setting.startswith("=")
    wanted = [name.strip() for name in setting.removeprefix("=").split(",") if name.strip()]
    if not any(name == each or (not is_exact and name.startswith(each)) for name in known for each in wanted):
        which = "is" if is_exact else "begins with"
        told = " or ".join(wanted)
        yield f"{INTERFACE}={setting}: no interface of this host {which} {told}; it has {', '.join(known)}"


def default_interface(routes: Path = _ROUTES) -> str:
    """Return the interface that the default route goes by; "" if there is none."""
    try:
        lines = routes.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return ""
    # Of each route: the interface, then where it leads to and the gateway, and in column 7 the mask, in hexadecimal.
    rows = [line.split() for line in lines]
    return next((row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"), "")


def _left(machine: Machine, environment: Mapping[str, str]) -> Sequence[Seen]:
    """Return what all ranks of the host together may use.

    Raises:
        UnsupportedError: nothing; the reason is told.
    """
    left = [each for each in parts(machine, environment.get(VARIABLE)) if each.gpu.fault is None]
    if not left:
        why = visible(machine, environment.get(VARIABLE)).reason
        raise UnsupportedError(
            f"no GPU is left to start ranks on, of the {len(machine.gpus)} that are here{f': {why}' if why else ''}"
        )
    return left


def _has_instances(left: Sequence[Seen]) -> bool:
    return any(each.instance is not None for each in left)


def _block(left: Sequence[Seen], count: int) -> Sequence[Seen]:
    """Return so many GPUs that follow each other from a multiple of their number: neighbours are linked best."""
    blocks = [left[start : start + count] for start in range(0, len(left) - count + 1, count)]
    return max(blocks, key=lambda block: min(each.gpu.free or 0 for each in block))


def _name(seen: Seen) -> str:
    """Return what CUDA_VISIBLE_DEVICES calls it; a UUID is the same whatever CUDA's order is."""
    if seen.instance is not None:
        return seen.instance.uuid
    return seen.gpu.uuid or str(seen.gpu.index)


def _many(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"
