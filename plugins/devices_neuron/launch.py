"""What torchrun's ranks need on a machine with Neuron chips: which core is whose, and how they find each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from devices import Variable
from devices.errors import UnsupportedError
from devices_neuron import sysfs
from devices_neuron.cores import LNC, VISIBLE, Core, all_cores, lnc_of, usable_cores
from devices_neuron.figures import limits_of
from devices_neuron.machine import Machine, Owner
from devices_neuron.tree import Tree

ROOT_COMM = "NEURON_RT_ROOT_COMM_ID"
_PORT = 62182
"""Any that is free will do; torchrun's own is 29500 where nobody says otherwise."""

_TOOLS = ("neuron-ls", "neuron-monitor", "neuron-top")


def shared_variables(machine: Machine, tree: Tree, environment: Mapping[str, str], ranks: int | None) -> list[Variable]:
    """Return the variables that are the same for all ranks of a machine."""
    lnc = lnc_of(machine, environment)
    found: list[Variable] = []
    block = cores_for(machine, environment, ranks)
    if len(block) < len(all_cores(machine, lnc)):
        which = f"{block[0].id}-{block[-1].id}" if len(block) > 1 else str(block[0].id)
        found.append(Variable(VISIBLE, which, "the cores of all ranks of this machine, of which each takes its own"))
    if len(machine.generation.lnc) > 1:
        why = f"a rank has one logical core, which is {lnc} physical ones; the compiler's --lnc is to be the same"
        found.append(Variable(LNC, str(lnc), why))
    address = environment.get("MASTER_ADDR", "").strip() or "127.0.0.1"
    port = environment.get("MASTER_PORT", "").strip()
    # Beside torchrun's own port, which the program's store has.
    number = int(port) + 1 if re.fullmatch(r"\d{1,5}", port) and int(port) < 65535 else _PORT
    why = "where the runtimes of all ranks meet: the host of rank 0, and a port that is not torchrun's"
    if address == "127.0.0.1":
        why += "; for ranks on several machines set MASTER_ADDR first"
    found.append(Variable(ROOT_COMM, f"{address}:{number}", why))
    if cards := sysfs.efa_cards(tree):
        found.append(Variable("FI_PROVIDER", "efa", f"between machines, over the {cards} EFA cards that are here"))
        found.append(Variable("FI_EFA_USE_DEVICE_RDMA", "1", "cards read and write the memory of the chips directly"))
        if sysfs.is_amazon_linux_2(tree):
            found.append(Variable("FI_EFA_FORK_SAFE", "1", "Amazon Linux 2 needs it where a program forks"))
    return found


def own_variables(
    machine: Machine, environment: Mapping[str, str], ranks: int | None, local_rank: int
) -> list[Variable]:
    """Return the variables that one rank alone has: its core."""
    cores = cores_for(machine, environment, ranks)
    if local_rank >= len(cores):
        raise UnsupportedError(f"{machine}: there is no local rank {local_rank}, with {len(cores)} ranks")
    core = cores[local_rank]
    why = f"this rank's core, {core.place} of neuron{core.chip.index}; no other process may have it until this one ends"
    return [Variable(VISIBLE, str(core.id), why)]


def cores_for(machine: Machine, environment: Mapping[str, str], ranks: int | None) -> tuple[Core, ...]:
    """Return the cores of so many ranks: cores that follow each other, at a multiple of their number, and are free.

    A rank that is already started finds what was said before it was: that its peers hold their cores by now changes
    nothing.

    Raises:
        UnsupportedError: there are none.
        SettingsError: a variable asks for what the machine has not.
    """
    cores = usable_cores(machine, environment)
    is_started = "LOCAL_RANK" in environment
    told = environment.get("LOCAL_WORLD_SIZE", "").strip()
    count = int(told) if ranks is None and is_started and told.isdecimal() and len(told) < 7 else ranks
    if count is None:
        count = len(cores)
    if not 1 <= count <= len(cores):
        raise UnsupportedError(f"{machine}: {count} ranks, and {len(cores)} logical cores that this process may use")
    if refused := size_refusal(machine, count):
        raise UnsupportedError(f"{machine}: {refused}")
    held: dict[int, Owner] = {}
    for start in range(-cores[0].id % count, len(cores) - count + 1, count):
        block = cores[start : start + count]
        taken = [] if is_started else [owner for core in block for owner in owners_of(core, machine)]
        if taken:
            held.update({owner.pid: owner for owner in taken})
        elif block[-1].id - block[0].id == count - 1 and is_joined(block):
            return block
    if held:
        raise UnsupportedError(f"{machine}: no {count} cores are free that follow each other: {holders(held.values())}")
    raise UnsupportedError(
        f"{machine}: there are no {count} cores that follow each other from a multiple of {count}, on joined chips"
    )


def size_refusal(machine: Machine, count: int) -> str | None:
    """Return why the runtime does not take so many ranks; None if it does."""
    limits = limits_of(machine, machine.generation.default_lnc or 1)
    if limits is None or limits.world_sizes is None or count in limits.world_sizes:
        return None
    multiple = limits.world_size_multiple
    if multiple is not None and count % multiple == 0:
        return None
    also = f" or a multiple of {multiple}" if multiple else ""
    return f"{count} is no number of ranks that the runtime takes: {sorted(limits.world_sizes)}{also}"


def owners_of(core: Core, machine: Machine) -> list[Owner]:
    """Return the processes that hold a core; tools that only look hold none."""
    found = []
    for owner in core.chip.owners:
        is_tool = owner.command.partition(" ")[0].rpartition("/")[2] in _TOOLS
        # An LNC that is not the machine's gives cores other numbers: then what is said is of the whole chip.
        speaks_of_cores = bool(owner.cores) and machine.lnc in (None, core.lnc)
        if not is_tool and (not speaks_of_cores or core.id in owner.cores):
            found.append(owner)
    return found


def holders(owners: Iterable[Owner]) -> str:
    """Return who holds cores, in words."""
    some = list(owners)
    told = [f"process {owner.pid}" + (f" ({owner.command[:60]})" if owner.command else "") for owner in some[:3]]
    rest = f" and {len(some) - 3} more" if len(some) > 3 else ""
    return f"{', '.join(told)}{rest} {'has' if len(some) == 1 else 'have'} them"


def is_joined(cores: Sequence[Core]) -> bool:
    """Return whether the chips of those cores are one connected part of the machine; yes where that is not known."""
    chips = {core.chip.index: core.chip for core in cores}
    if any(chip.neighbours is None for chip in chips.values()) or not any(chip.neighbours for chip in chips.values()):
        return True
    seen, to_look_at = set(), [next(iter(chips))]
    while to_look_at:
        index = to_look_at.pop()
        if index not in seen:
            seen.add(index)
            to_look_at += [peer for peer in chips[index].neighbours or () if peer in chips]
    return len(seen) == len(chips)
