"""A machine as JSON, so that one that was recorded can be read where there is no GPU. What is odd in it is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from typing import Any

from devices.errors import DevicesError
from devices_cuda.machine import ANCESTORS, CLIQUE_TYPES, FABRIC_STATES, MAX_LINKS, REMOTES, Gpu, Machine, NvLink

FORMAT = "devices-cuda-machine-1"
"""What a record says that it is; another number for another shape."""

MAX_GPUS = 1024
"""No host has more."""

_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_CLUSTER = re.compile(r"[0-9a-f]{32}")
_LEAST_MEMORY, _MOST_MEMORY = 2**28, 2**44


class RecordError(DevicesError, ValueError):
    """What was to describe a machine is cut off, damaged, or contradicts itself."""


def to_json(machine: Machine) -> str:
    """Return a machine as text that `from_json` reads."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(machine)}, indent=1) + "\n"


def from_json(text: str) -> Machine:
    """Return the machine of a record, every value of the right type and in the range that it can have.

    Raises:
        RecordError: the text is cut off, a field is missing, unknown, of another type or unit, or two contradict.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a machine's record is no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise RecordError(f"a machine's record says 'format': {FORMAT!r}; this has {found!r}")
    machine = _read({key: value for key, value in data.items() if key != "format"}, Machine, "the record")
    assert isinstance(machine, Machine)
    return checked(machine)


def checked(machine: Machine) -> Machine:
    """Return `machine` if it can be one.

    Raises:
        RecordError: a value is in another unit, or two contradict each other.
    """
    _demand(
        [gpu.index for gpu in machine.gpus] == list(range(len(machine.gpus))), "the GPUs are not numbered 0, 1, ..."
    )
    _demand(len(machine.gpus) <= MAX_GPUS, f"there are {len(machine.gpus)} GPUs")
    _demand(machine.cuda is None or 5 <= machine.cuda[0] <= 99, f"no driver serves CUDA {machine.cuda}")
    for what in ("uuid", "pci"):
        given = [getattr(gpu, what) for gpu in machine.gpus if getattr(gpu, what) is not None]
        _demand(len(set(given)) == len(given), f"two GPUs have one {what}")
    for gpu in machine.gpus:
        _check_gpu(gpu)
    names = [nic.name for nic in machine.nics]
    addresses = {gpu.pci for gpu in machine.gpus if gpu.pci is not None}
    both = [nic.name for nic in machine.nics if nic.pci in addresses]
    _demand(not both, f"a GPU and network device {both[:1]} have one PCI address")
    _demand(len(set(names)) == len(names), "two network devices have one name")
    for nic in machine.nics:
        _demand(_is_place(nic.pci, nic.path), f"network device {nic.name!r}: {nic.pci!r} with {nic.path!r} is no place")
        _demand(nic.numa is None or 0 <= nic.numa <= 2**16, f"network device {nic.name!r}: numa={nic.numa}")
    seen: set[tuple[int, int]] = set()
    for pair in machine.pairs:
        who = f"GPUs {pair.first} and {pair.second}"
        _demand(0 <= pair.first < pair.second < len(machine.gpus), f"{who} are no two GPUs of {len(machine.gpus)}")
        _demand((pair.first, pair.second) not in seen, f"{who} are there twice")
        seen.add((pair.first, pair.second))
        _demand(pair.ancestor in (*ANCESTORS, None), f"{who}: ancestor={pair.ancestor!r}; it is one of {ANCESTORS}")
        _demand(pair.nvlinks is None or 0 <= pair.nvlinks <= MAX_LINKS, f"{who}: nvlinks={pair.nvlinks}")
    near: set[tuple[int, str]] = set()
    for each in machine.nearness:
        who = f"GPU {each.gpu} and network device {each.nic!r}"
        _demand(0 <= each.gpu < len(machine.gpus) and each.nic in names, f"{who} are not both there")
        _demand((each.gpu, each.nic) not in near, f"{who} are there twice")
        near.add((each.gpu, each.nic))
        _demand(each.ancestor in ANCESTORS, f"{who}: ancestor={each.ancestor!r}; it is one of {ANCESTORS}")
    return machine


def _check_gpu(gpu: Gpu) -> None:
    who = f"GPU {gpu.index}"
    _demand(gpu.uuid is None or gpu.uuid.startswith("GPU-"), f"{who}: uuid={gpu.uuid!r} does not begin with 'GPU-'")
    _demand(_is_place(gpu.pci, gpu.path), f"{who}: {gpu.pci!r} with {gpu.path!r} is no place on the PCI bus")
    _check_memory(who, gpu.memory, gpu.free)
    for what, least, most in (
        ("numa", 0, 2**16),
        ("memory_numa", 0, 2**16),
        ("pcie_generation", 1, 9),
        ("pcie_width", 1, 32),
    ):
        value = getattr(gpu, what)
        _demand(value is None or least <= value <= most, f"{who}: {what}={value}, not from {least} to {most}")
    if gpu.capability is not None:
        major, minor = gpu.capability
        _demand(1 <= major <= 99 and 0 <= minor <= 9, f"{who}: capability={gpu.capability}")
    _demand(not gpu.instances or gpu.mig is True, f"{who} has MIG instances, but mig={gpu.mig}")
    for instance in gpu.instances:
        _demand(instance.uuid.startswith("MIG-"), f"{who}: uuid={instance.uuid!r} does not begin with 'MIG-'")
        _check_memory(f"{who}, {instance.uuid}", instance.memory, instance.free)
    for link in gpu.nvlinks or ():
        _check_link(f"{who}, NVLink {link.number}", link)
    numbers = [link.number for link in gpu.nvlinks or ()]
    _demand(len(set(numbers)) == len(numbers), f"{who} has one NVLink twice")
    if (fabric := gpu.fabric) is not None:
        _demand(fabric.state in FABRIC_STATES, f"{who}: fabric state {fabric.state!r}; it is one of {FABRIC_STATES}")
        is_cluster = fabric.cluster is None or _CLUSTER.fullmatch(fabric.cluster) is not None
        _demand(is_cluster, f"{who}: cluster={fabric.cluster!r} is not 32 hexadecimal digits")
        for clique in fabric.cliques:
            _demand(clique.type in (*CLIQUE_TYPES, None), f"{who}: clique type {clique.type!r}")
            _demand(0 <= clique.id < 2**32, f"{who}: clique id {clique.id}")


def _check_link(who: str, link: NvLink) -> None:
    _demand(0 <= link.number < MAX_LINKS, f"{who}: there are at most {MAX_LINKS}")
    is_version = link.version is None or re.fullmatch(r"[1-9]\.[0-9]", link.version) is not None
    _demand(is_version, f"{who}: version={link.version!r}; it is one such as '4.0'")
    _demand(link.remote in (*REMOTES, None), f"{who}: remote={link.remote!r}; it is one of {REMOTES}")
    _demand(link.peer is None or _PCI.fullmatch(link.peer) is not None, f"{who}: peer={link.peer!r} is no PCI address")


def _check_memory(who: str, memory: int | None, free: int | None) -> None:
    is_memory = memory is None or _LEAST_MEMORY <= memory <= _MOST_MEMORY
    _demand(is_memory, f"{who}: memory={memory} is no GPU's memory in bytes")
    is_free = free is None or (free >= 0 and (memory is None or free <= memory))
    _demand(is_free, f"{who}: free={free} of memory={memory} bytes")


def _is_place(pci: str | None, path: tuple[str, ...] | None) -> bool:
    addresses = [*(path or ()), *([pci] if pci is not None else [])]
    if not all(_PCI.fullmatch(address) for address in addresses):
        return False
    return path is None or (len(path) > 0 and len(set(path)) == len(path) and pci in (None, path[-1]))


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise RecordError(f"this is no machine: {complaint}")


def _read(value: Any, wanted: Any, where: str) -> Any:
    """Return `value`, which came from JSON, as the type `wanted`."""
    if isinstance(wanted, types.UnionType):
        members = typing.get_args(wanted)
        if value is None and types.NoneType in members:
            return None
        [wanted] = [member for member in members if member is not types.NoneType]
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _read_object(value, wanted, where)
    if typing.get_origin(wanted) is tuple:
        members = typing.get_args(wanted)
        if not isinstance(value, list):
            raise RecordError(f"{where} is {_shown(value)}, not a list")
        if members[-1] is Ellipsis:
            return tuple(_read(each, members[0], f"{where}[{place}]") for place, each in enumerate(value))
        if len(value) != len(members):
            raise RecordError(f"{where} has {len(value)} values, not {len(members)}")
        return tuple(_read(each, member, where) for each, member in zip(value, members, strict=True))
    # A bool is an int to Python, and not here.
    if type(value) is not wanted:
        raise RecordError(f"{where} is {_shown(value)}, not of type {wanted.__name__}")
    return value


def _read_object(value: Any, wanted: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {_shown(value)}, not an object")
    hints = _hints(wanted)
    if unknown := sorted(value.keys() - hints.keys()):
        raise RecordError(f"{where} has {unknown[0]!r}, which no {wanted.__name__} has")
    needed = [field.name for field in dataclasses.fields(wanted) if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise RecordError(f"{where} lacks {missing[0]!r}")
    return wanted(**{name: _read(each, hints[name], f"{where}.{name}") for name, each in value.items()})


@functools.cache
def _hints(wanted: Any) -> dict[str, Any]:
    return typing.get_type_hints(wanted)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
