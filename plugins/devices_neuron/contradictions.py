"""Settings that contradict each other, or the machine: what `devices doctor` says of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from devices_neuron import sysfs
from devices_neuron.cores import (
    COUNT,
    LNC,
    OLD_LNC,
    VISIBLE,
    Core,
    SettingsError,
    lnc_of,
    number_of_cores,
    usable_cores,
)
from devices_neuron.launch import ROOT_COMM, holders, is_joined, owners_of, size_refusal
from devices_neuron.machine import Machine, Owner
from devices_neuron.tree import Tree

_COMPILER = "NEURON_CC_FLAGS"
_COMPILER_LNC = re.compile(r"(?:^|\s)(?:--lnc|-lnc|--logical-nc-config)(?:=|\s+)[\"']?(\d+)")

_GONE = {
    "NEURONCORE_GROUP_SIZES": f"it is of the first Neuron runtime; {VISIBLE} says which cores a process has",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "SDK 2.32 took it away",
    "PJRT_DEVICE": "it is torch-xla's, which native TorchNeuron is not built on",
}


def contradictions_of(machine: Machine, tree: Tree, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each."""
    found = [*_of_lnc(machine, environment), *_of_cores(machine, environment), *_of_network(tree, environment)]
    for name, why in _GONE.items():
        if environment.get(name) and (name != "PJRT_DEVICE" or environment[name].upper() == "NEURON"):
            found.append(f"{name}={environment[name]} does nothing: {why}")
    return (*found, *machine.faults)


def _of_lnc(machine: Machine, environment: Mapping[str, str]) -> Iterator[str]:
    new, old = environment.get(LNC, "").strip(), environment.get(OLD_LNC, "").strip()
    if new and old and new != old:
        yield f"{LNC}={new} and {OLD_LNC}={old} are two names of one setting and do not agree; set the first alone"
    try:
        lnc = lnc_of(machine, environment)
    except SettingsError as error:
        yield str(error)
        return
    for text in _COMPILER_LNC.findall(environment.get(_COMPILER, "")):
        if int(text) != lnc:
            where = f"{LNC}={new}" if new else f"{OLD_LNC}={old}" if old else "the machine's setting"
            yield f"{_COMPILER} compiles for LNC {text}, and the runtime has LNC {lnc} by {where}; make them one"


def _of_cores(machine: Machine, environment: Mapping[str, str]) -> Iterator[str]:
    visible = environment.get(VISIBLE, "").strip()
    try:
        cores = usable_cores(machine, environment)
        count = number_of_cores(environment)
    except SettingsError as error:
        if not str(error).startswith((LNC, OLD_LNC)):
            yield str(error)
        return
    if visible:
        if count:
            yield f"{VISIBLE}={visible} and {COUNT}={count} are both set; the first holds, so unset the second"
        yield from _of_visible(machine, cores, visible)
    if cores:
        yield from _of_owners(machine, cores, environment)


def _of_visible(machine: Machine, cores: tuple[Core, ...], visible: str) -> Iterator[str]:
    count = len(cores)
    if cores[0].id % count:
        start = cores[0].id // count * count
        yield f"{VISIBLE}={visible}: {count} cores begin at a multiple of {count}, at {start} or {start + count}"
    if refused := size_refusal(machine, count):
        yield f"{VISIBLE}={visible}: {refused}"
    if not is_joined(cores):
        chips = ", ".join(f"neuron{index}" for index in dict.fromkeys(core.chip.index for core in cores))
        yield (
            f"{VISIBLE}={visible} is of {chips}, which are not joined to each other: a third party saw such a group "
            "abort, or give wrong results without a word; take cores of chips that are neighbours"
        )


def _of_owners(machine: Machine, cores: tuple[Core, ...], environment: Mapping[str, str]) -> Iterator[str]:
    held: dict[int, Owner] = {}
    lost: list[int] = []
    for core in cores:
        others = [owner for owner in owners_of(core, machine) if owner.pid not in (os.getpid(), os.getppid())]
        held.update({owner.pid: owner for owner in others})
        if others:
            lost.append(core.id)
    if held:
        which = f"core {lost[0]}" if len(lost) == 1 else f"{len(lost)} cores from {lost[0]} to {lost[-1]}"
        yield f"{which} cannot be had: {holders(list(held.values()))}, and a core is one process's until it ends"
    ranks = environment.get("LOCAL_WORLD_SIZE", "").strip()
    if ranks.isdecimal() and len(ranks) < 7 and not environment.get(VISIBLE, "").strip() and int(ranks) > len(cores):
        yield f"LOCAL_WORLD_SIZE={ranks}: each rank has a logical core of its own, and there are {len(cores)}"


def _of_network(tree: Tree, environment: Mapping[str, str]) -> Iterator[str]:
    meeting = environment.get(ROOT_COMM, "").strip()
    if meeting:
        address, _, port = meeting.rpartition(":")
        if not address or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
            yield f"{ROOT_COMM}={meeting} is no address and port, as 10.0.0.1:62182 is one"
        elif port == environment.get("MASTER_PORT", "").strip():
            yield f"{ROOT_COMM}={meeting} has the port of MASTER_PORT, where torchrun listens; take another"
    provider = environment.get("FI_PROVIDER", "").strip()
    cards = sysfs.efa_cards(tree)
    if provider == "efa" and not cards:
        yield "FI_PROVIDER=efa, and this machine has no EFA card; unset it, or attach one"
    elif provider and "efa" not in provider and cards:
        yield f"FI_PROVIDER={provider}, and this machine has {cards} EFA cards, which are then not used"
