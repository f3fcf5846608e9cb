"""Logical NeuronCores: how a machine's physical cores are put together, and which of them this process may use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devices_neuron.machine import Chip, Machine

LNC = "NEURON_LOGICAL_NC_CONFIG"
OLD_LNC = "NEURON_RT_VIRTUAL_CORE_SIZE"
VISIBLE = "NEURON_RT_VISIBLE_CORES"
COUNT = "NEURON_RT_NUM_CORES"

_MOST = 4096


class SettingsError(ValueError):
    """A variable of the environment says what this machine cannot do; the message says what and why."""


@dataclass(frozen=True, slots=True)
class Core:
    """One logical core.

    Args:
        id: its number on the machine, as NEURON_RT_VISIBLE_CORES has it.
        chip: the chip that it is part of.
        place: its number on the chip.
        lnc: how many physical cores it is made of.
    """

    id: int
    chip: Chip
    place: int
    lnc: int

    @property
    def physical(self) -> range:
        """The numbers, on the chip, of the physical cores that it is made of."""
        return range(self.place * self.lnc, (self.place + 1) * self.lnc)

    @property
    def memory(self) -> int | None:
        """Bytes: its share of the chip's memory; None when unknown."""
        return None if self.chip.memory is None else self.chip.memory * self.lnc // self.chip.cores


def lnc_of(machine: Machine, environment: Mapping[str, str]) -> int:
    """Return how many physical cores one logical core is made of, for a process with that environment.

    Raises:
        SettingsError: a variable asks for what the chip has not.
    """
    allowed = machine.generation.lnc or (1,)
    for name in (LNC, OLD_LNC):
        text = environment.get(name, "").strip()
        if not text:
            continue
        if not text.isdecimal() or len(text) > 4 or int(text) not in allowed:
            listed = " and ".join(map(str, allowed))
            raise SettingsError(f"{name}={text}: a {machine.generation} has LNC {listed}")
        return int(text)
    return machine.lnc or machine.generation.default_lnc or 1


def all_cores(machine: Machine, lnc: int) -> tuple[Core, ...]:
    """Return all logical cores of a machine, in the order of their ids."""
    found: list[Core] = []
    for chip in machine.chips:
        count = chip.cores // lnc
        ids = chip.core_ids if chip.core_ids is not None and len(chip.core_ids) == count else None
        found += [Core(ids[place] if ids else chip.index * count + place, chip, place, lnc) for place in range(count)]
    return tuple(sorted(found, key=lambda core: core.id))


def usable_cores(machine: Machine, environment: Mapping[str, str]) -> tuple[Core, ...]:
    """Return the logical cores that a process with that environment may use.

    Raises:
        SettingsError: a variable asks for what the machine has not.
    """
    cores = [core for core in all_cores(machine, lnc_of(machine, environment)) if core.chip.is_open]
    wanted = visible(environment)
    if wanted is not None:
        known = {core.id: core for core in cores}
        if lost := [core for core in wanted if core not in known]:
            raise SettingsError(
                f"{VISIBLE}={environment[VISIBLE]}: there is no logical core {lost[0]} that this process may use; "
                f"{in_words(sorted(known))}"
            )
        return tuple(known[core] for core in wanted)
    count = number_of_cores(environment)
    if count > len(cores):
        raise SettingsError(f"{COUNT}={count}: there are {len(cores)} logical cores that this process may use")
    # The runtime takes the first that are free.
    return tuple(cores[:count] if count else cores)


def index_of_first(cores: Sequence[Core], environment: Mapping[str, str]) -> int:
    """Return torch's index of the first of a process's cores.

    It counts those that are visible. But a rank of a world has one core, and torch's index of that is its place among
    the host's ranks, whichever core it is.
    """
    rank = environment.get("LOCAL_RANK", "")
    is_rank = environment.get("WORLD_SIZE", "1") != "1" and rank.isdecimal() and len(rank) <= 4
    return int(rank) if is_rank and len(cores) == 1 and environment.get(VISIBLE, "").strip() else 0


def visible(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the ids that NEURON_RT_VISIBLE_CORES names; None if it is not set.

    Raises:
        SettingsError: it is no list of cores, or one with a hole.
    """
    text = environment.get(VISIBLE, "").strip()
    if not text:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", part)
        if match is None:
            raise SettingsError(f"{VISIBLE}={text}: {part.strip()!r} is neither a core nor a range as '0-3'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= _MOST:
            raise SettingsError(f"{VISIBLE}={text}: {part.strip()!r} is no range of cores")
        found += range(first, last + 1)
    if found != list(range(found[0], found[0] + len(found))):
        raise SettingsError(f"{VISIBLE}={text}: the runtime takes cores that follow each other, each once, in order")
    return tuple(found)


def number_of_cores(environment: Mapping[str, str]) -> int:
    """Return what NEURON_RT_NUM_CORES says; 0 is all.

    Raises:
        SettingsError: it is no number.
    """
    text = environment.get(COUNT, "").strip()
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 4:
        raise SettingsError(f"{COUNT}={text} is no number of cores")
    return int(text)


def in_words(ids: list[int]) -> str:
    """Return which cores there are, as the end of a sentence."""
    if not ids:
        return "there are none"
    return f"there are {ids[0]} to {ids[-1]}" if len(ids) > 1 else f"there is {ids[0]}"
