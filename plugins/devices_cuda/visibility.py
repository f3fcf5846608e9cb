"""Which GPUs CUDA_VISIBLE_DEVICES leaves, and in which order: the index of a torch device is its place among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from devices_cuda.machine import Gpu, Machine, MigInstance

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Seen:
    """A GPU that a program may use, or an instance of one.

    Args:
        gpu: the GPU.
        instance: the MIG instance of it; None for the whole.
    """

    gpu: Gpu
    instance: MigInstance | None = None


@dataclass(frozen=True, slots=True)
class Visible:
    """What a program may use.

    Args:
        seen: torch's `cuda:0`, `cuda:1`, ...
        reason: why there is nothing, or not all; "" if there is no more to say.
    """

    seen: tuple[Seen, ...]
    reason: str = ""


def visible(machine: Machine, setting: str | None) -> Visible:
    """Return what CUDA_VISIBLE_DEVICES, which is set to `setting` or not, leaves of a machine.

    What CUDA's documents say of it: indices or UUIDs, the latter as short as is clear; what is no device ends the list;
    what is there twice leaves nothing. A process sees one MIG instance, and no GPU beside it.
    """
    chosen, reason = _chosen(machine, setting)
    return Visible((), reason) if not chosen and reason else _within_mig(machine, chosen, reason)


def parts(machine: Machine, setting: str | None) -> tuple[Seen, ...]:
    """Return what several processes together may use of a machine: of a GPU that is divided, each instance."""
    chosen, _ = _chosen(machine, setting)
    return tuple(seen for seen in chosen if not seen.gpu.mig or seen.instance is not None)


def _chosen(machine: Machine, setting: str | None) -> tuple[list[Seen], str]:
    """Return what a setting names, and why it is not all; nothing, and why, where it hides everything."""
    if setting is None:
        return list(_all(machine)), ""
    if not setting.strip():
        return [], f"{VARIABLE} is empty, which hides all GPUs ({len(machine.gpus)} here)"
    entries = [entry.strip() for entry in setting.split(",")]
    find = _by_uuid if entries[0].startswith(("GPU-", "MIG-")) else _by_index
    chosen: list[Seen] = []
    reason = ""
    for entry in entries:
        found = find(machine, entry)
        if isinstance(found, str):
            reason = f"{VARIABLE}={setting}: {entry!r} {found}, and ends the list"
            break
        if found in chosen:
            return [], f"{VARIABLE}={setting} names {entry!r} twice, which hides all GPUs"
        chosen.append(found)
    return chosen, reason


def _all(machine: Machine) -> Iterator[Seen]:
    for gpu in machine.gpus:
        yield from (Seen(gpu, instance) for instance in gpu.instances) if gpu.mig else (Seen(gpu),)


def _by_index(machine: Machine, entry: str) -> Seen | str:
    """Return the GPU of an index, or what is wrong with it."""
    # CUDA reads as much as is a number: "1gpu" is 1.
    number = re.match(r"[+-]?\d+", entry)
    if number is None:
        return "is no index of a GPU"
    index = int(number[0])
    if not 0 <= index < len(machine.gpus):
        return f"is none of 0 to {len(machine.gpus) - 1}" if machine.gpus else "is not there: there are no GPUs"
    gpu = machine.gpus[index]
    return Seen(gpu, gpu.instances[0]) if gpu.instances else Seen(gpu)


def _by_uuid(machine: Machine, entry: str) -> Seen | str:
    """Return the GPU or the instance whose UUID begins so, or what is wrong with it."""
    if re.fullmatch(r"MIG-GPU-[0-9a-f-]+/\d+/\d+", entry):
        return "is an instance's name of drivers before R470; `nvidia-smi -L` prints the new one"
    if entry.startswith("MIG-"):
        every = [Seen(gpu, instance) for gpu in machine.gpus for instance in gpu.instances]
        found = [seen for seen in every if seen.instance is not None and seen.instance.uuid.startswith(entry)]
    elif entry.startswith("GPU-"):
        found = [Seen(gpu) for gpu in machine.gpus if gpu.uuid is not None and gpu.uuid.startswith(entry)]
        if not found and any(gpu.uuid is None for gpu in machine.gpus):
            return "is none that can be found: the driver does not say every GPU's UUID"
    else:
        return "is no UUID, and the first entry is one"
    if len(found) != 1:
        return "is no GPU's UUID here" if not found else f"begins the UUIDs of {len(found)}"
    gpu = found[0].gpu
    return found[0] if found[0].instance is not None or not gpu.instances else Seen(gpu, gpu.instances[0])


def _within_mig(machine: Machine, chosen: list[Seen], reason: str) -> Visible:
    """Return what a process sees of what was chosen: one MIG instance and nothing else, if there is one among it."""
    empty = [seen for seen in chosen if seen.gpu.mig and seen.instance is None]
    chosen = [seen for seen in chosen if seen not in empty]
    instances = [seen for seen in chosen if seen.instance is not None]
    told = [reason] if reason else []
    if empty or (not chosen and not reason and any(gpu.mig for gpu in machine.gpus)):
        divided = [str(gpu.index) for gpu in machine.gpus if gpu.mig and not gpu.instances]
        told.append(f"GPU {', '.join(divided)} is in MIG mode, and no instance of it was made (`nvidia-smi mig -cgi`)")
    if len(chosen) > 1 and instances:
        told.append(f"a process sees one MIG instance and nothing else; {VARIABLE} says which")
    return Visible(tuple(instances[:1] or chosen), "; ".join(told))
