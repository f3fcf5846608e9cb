"""Opening groups of Neuron devices over the vendor's process group, and what must hold before its runtime starts."""

from __future__ import annotations

import importlib
import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devices import Communicator, Device, Group, ProcessGroupCommunicator
from devices.errors import BackendUnavailableError, UnsupportedError, WorldError
from devices_neuron.launch import ROOT_COMM

_places: dict[int, Place] = {}
"""Of each rank of the world that the vendor's runtime was started for, where it is. The runtime has one in its life.

The ranks are those of the program's world that is open: after `world.recover()` they have other numbers.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is.

    Args:
        host: what tells its machine from the others.
        core: the logical core that it has there.
        process: the process that has it.
    """

    host: str
    core: int
    process: int


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a rank tells the others before the runtime starts.

    Args:
        rank: the rank.
        host: what tells its machine from the others.
        cores: the logical cores that it is to have.
        lnc: how many physical cores are a logical one, where a variable says so.
        process: its process.
        fault: why it cannot start, in words; "" if it can.
    """

    rank: int
    host: str
    cores: tuple[int, ...]
    lnc: str
    process: int
    fault: str = ""


def load() -> Any:
    """Return the vendor's package, which tells torch of the devices and the process group.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("torch_neuronx")
    except ImportError as error:
        raise BackendUnavailableError(
            "backend 'neuron' needs the package torch-neuronx (native TorchNeuron, SDK 2.33 or later), which cannot be "
            f"imported: {error}"
        ) from error


def bind(device: Device) -> None:
    """Make `device` the current one, if this rank is alone; in a world the vendor does as its first group opens."""
    load()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        import torch

        torch.get_device_module("neuron").set_device(device.index)


def open_group(group: Group) -> Communicator:
    """Return a communicator over the vendor's process group.

    Raises:
        WorldError: the runtime was started before, two ranks have one core, or their variables contradict each other.
        UnsupportedError: the hardware has no such group.
    """
    import torch.distributed as dist

    from devices_neuron.communicator import NeuronCommunicator

    load()
    if not _places:
        places = _agreed(group)
        mine = places[group.ranks[group.rank]]
        if not os.environ.get("NEURON_RT_VISIBLE_CORES"):
            os.environ["NEURON_RT_VISIBLE_CORES"] = str(mine.core)
        if (address := _meeting(os.environ, list(places.values()))) is not None:
            os.environ[ROOT_COMM] = address
        communicator = NeuronCommunicator.open(group, has_all_to_all=True)
        try:
            _check_index(group)
        except BaseException:
            communicator.close()
            raise
        _places.update(places)
        return communicator
    if not dist.is_initialized():
        _open_again(group)
    _check_symmetric(group)
    return NeuronCommunicator.open(group, has_all_to_all=_is_aligned(group.ranks, sorted(_places)))


def bound() -> tuple[str, int] | None:
    """Return the world that the runtime was started for: what it is called, and how many ranks it has."""
    if not _places:
        return None
    first = next(iter(_places.values()))
    return f"that of process {first.process} on {first.host}", len(_places)


def open_alone(group: Group) -> None:
    """Start the runtime for this rank alone, with its own core and no other: other processes have theirs.

    Raises:
        WorldError: the program started it before, with whatever cores it found; or this rank has not exactly one.
    """
    load()
    if _places:
        return
    claim = _claim(group)
    if claim.fault:
        raise WorldError(f"{group}: the rank cannot start: {claim.fault}")
    os.environ["NEURON_RT_VISIBLE_CORES"] = str(claim.cores[0])
    place = Place(claim.host, claim.cores[0], claim.process)
    if (address := _meeting(os.environ, [place])) is not None:
        os.environ[ROOT_COMM] = address
    # The vendor gives a rank its core as its first group opens, which may have one rank.
    opened = ProcessGroupCommunicator.open("neuron", group)
    try:
        _check_index(group)
    finally:
        opened.close()
    _places[claim.rank] = place


def _open_again(group: Group) -> None:
    """Let the world that the runtime was started for be that of a group, whose ranks may have other numbers now.

    Raises:
        WorldError: on every rank: the group has other ranks.
    """
    mine = next(place for place in _places.values() if place.process == os.getpid())
    told = [Place(**each) for each in group.share("neuron/again", asdict(mine))]
    if told != [_places[rank] for rank in sorted(_places)]:
        raise WorldError(
            f"{group}: a world of {group.size} cannot open after one of {len(_places)}, that the Neuron runtime was "
            "started for; it has one as long as the process lives, so start the ranks anew"
        )
    _places.clear()
    _places.update(zip(group.ranks, told, strict=True))


def _agreed(group: Group) -> dict[int, Place]:
    """Let all ranks of the world agree on who has which core; return it, or raise the same on each."""
    claims = _claims(group, _claim(group))
    if (fault := _fault(claims)) is not None:
        raise WorldError(f"{group}: the world cannot open: {fault}")
    places = {claim.rank: Place(claim.host, claim.cores[0], claim.process) for claim in claims}
    hosts = {claim.host: {place.core for place in places.values() if place.host == claim.host} for claim in claims}
    first, *others = hosts.values()
    if any(cores != first for cores in others):
        told = "; ".join(f"{host}: {_listed(sorted(cores))}" for host, cores in hosts.items())
        raise UnsupportedError(
            f"{group}: a world of several hosts must have all cores of each, and the same on each; it has {told}. "
            "Launch as many ranks on each host as it has logical cores"
        )
    return places


def _meeting(environment: Mapping[str, str], places: Sequence[Place]) -> str | None:
    """Return where the runtimes of these ranks meet, where they are a part of the program's; None if it is as it was.

    Another part of it meets at the address that all were told of.
    """
    told, size = environment.get(ROOT_COMM, "").strip(), environment.get("WORLD_SIZE", "").strip()
    _, colon, port = told.rpartition(":")
    is_part = size.isdecimal() and int(size) != len(places)
    if not (is_part and colon and port.isdecimal()) or len({place.host for place in places}) > 1:
        return None
    at = int(port) + 1 + min(place.core for place in places)
    return f"127.0.0.1:{at}" if at < 65536 else None


def _check_index(group: Group) -> None:
    """Raise unless torch's index of this rank's core is the one that its tensors are going to be made on."""
    import torch

    current = torch.get_device_module("neuron").current_device()
    if current != group.device.index:
        raise WorldError(
            f"{group}: the Neuron runtime gave this rank neuron:{current}, and {group.device} was expected; let "
            "LOCAL_RANK count the ranks of a host, as torchrun does"
        )


def _claim(group: Group) -> _Claim:
    """Return what this rank tells the others."""
    rank, fault = group.ranks[group.rank], ""
    text = os.environ.get("NEURON_RT_VISIBLE_CORES", "")
    try:
        cores = _cores(text) if text else (group.device.index,)
    except ValueError:
        cores, fault = (), f"NEURON_RT_VISIBLE_CORES={text!r} is no list or range of logical cores"
    if not fault and len(cores) != 1:
        fault = f"NEURON_RT_VISIBLE_CORES={text!r} are {len(cores)} logical cores, and a rank has exactly one"
    if _is_started():
        fault = (
            "the Neuron runtime was started before the world opened: open the world before the first tensor on a "
            "neuron device and before torch.neuron is asked about memory"
        )
    return _Claim(rank, _host(), cores, os.environ.get("NEURON_LOGICAL_NC_CONFIG", ""), os.getpid(), fault)


def _claims(group: Group, mine: _Claim) -> list[_Claim]:
    """Return what all ranks tell, in rank order."""
    told = group.share("neuron/claim", asdict(mine))
    return [_Claim(**{**each, "cores": tuple(each["cores"])}) for each in told]


def _fault(claims: Sequence[_Claim]) -> str | None:
    """Return why a world of these ranks cannot open; None if it can."""
    if faults := [f"rank {claim.rank}: {claim.fault}" for claim in claims if claim.fault]:
        return "; ".join(faults)
    owners: dict[tuple[str, int], list[int]] = defaultdict(list)
    for claim in claims:
        owners[claim.host, claim.cores[0]].append(claim.rank)
    if shared := {place: ranks for place, ranks in owners.items() if len(ranks) > 1}:
        told = "; ".join(f"ranks {_listed(ranks)} have core {core} of {host}" for (host, core), ranks in shared.items())
        return (
            f"a logical core belongs to one process, and {told}. Launch no more ranks on a host than it has logical "
            "cores, and let NEURON_RT_VISIBLE_CORES be unset or another for each"
        )
    by_lnc = {claim.lnc: claim.rank for claim in claims if claim.lnc}
    if len(by_lnc) > 1:
        told = ", ".join(f"{lnc} on rank {rank}" for lnc, rank in by_lnc.items())
        return f"NEURON_LOGICAL_NC_CONFIG is {told}; it must be the same for all"
    return None


def _check_symmetric(group: Group) -> None:
    """Raise unless the group has the same cores of each host that it reaches."""
    hosts: Mapping[str, set[int]] = defaultdict(set)
    for rank in group.ranks:
        hosts[_places[rank].host].add(_places[rank].core)
    first, *others = hosts.values()
    if any(cores != first for cores in others):
        told = "; ".join(f"{host}: {_listed(sorted(cores))}" for host, cores in hosts.items())
        raise UnsupportedError(
            f"{group}: Neuron has no group of ranks {_listed(group.ranks)}, which is not symmetric: it must have the "
            f"same cores of each host that it reaches, and has {told}"
        )


def _is_aligned(ranks: Sequence[int], world: Sequence[int]) -> bool:
    """Return whether the runtime's world, in its order, is divided into groups of that size, this one among them.

    Args:
        ranks: the group's, of torch's world.
        world: those of torch's world that the runtime was started for, in order: all, or those that are Neuron's.
    """
    size, start = len(ranks), world.index(ranks[0])
    return len(world) % size == 0 and start % size == 0 and list(ranks) == list(world[start : start + size])


def _is_started() -> bool:
    """Return whether this process has started the vendor's runtime."""
    import torch

    asked = getattr(torch.get_device_module("neuron"), "is_initialized", None)
    return bool(asked()) if asked is not None else False


def _cores(text: str) -> tuple[int, ...]:
    """Return the cores that a list of cores and ranges names: "3", "0-3", "3,4,5"."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def _host() -> str:
    """Return what tells this machine from others; containers on one machine have cores of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text()[:8] if boot.exists() else ''}".strip()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
