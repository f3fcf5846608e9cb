"""Puts together what the driver's files and `neuron-ls` say, and reports where they do not agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, final

from devices_neuron import neuron_ls, sysfs
from devices_neuron.chips import GENERATIONS, Generation, by_instance
from devices_neuron.links import agreed_links
from devices_neuron.machine import Absent, Chip, Machine
from devices_neuron.neuron_ls import Listed, Listing, ListingError
from devices_neuron.sysfs import ChipFiles
from devices_neuron.tree import Tree

T = TypeVar("T")

_INSTALL = "install the package aws-neuronx-dkms, or load it by `sudo modprobe neuron`"


def discover(root: Path = Path("/"), ask: Callable[[Path], Listing | None] = neuron_ls.ask) -> Machine | Absent:
    """Return the machine that is described under a folder, or why there is none.

    Args:
        root: what stands for "/".
        ask: gives what `neuron-ls` says.
    """
    tree = Tree(root)
    files, nodes = sysfs.chips(tree), sysfs.nodes(tree)
    if not files and not nodes:
        return Absent(_why_there_are_none(tree), tuple(tree.faults))
    gaps: list[str] = []
    listing = None
    try:
        listing = ask(root)
    except ListingError as error:
        tree.faults.append(f"neuron-ls cannot be used: {error}")
    return _Meeting(tree, files, nodes, listing, gaps).machine()


def _why_there_are_none(tree: Tree) -> str:
    found = sysfs.on_the_bus(tree)
    chips = " and ".join(f"{count} {generation} chip{'s' if count > 1 else ''}" for generation, count in found.items())
    version = sysfs.driver(tree)
    if version is not None:
        named = f"driver {version}" if version else "the driver"
        here = f", though the PCI bus has {chips}; `sudo dmesg` says why" if chips else ""
        return f"{named} of AWS Neuron is loaded and has made no device{here}"
    if chips:
        return f"the driver of AWS Neuron is not loaded: the PCI bus has {chips}; {_INSTALL}"
    instance = sysfs.instance_type(tree)
    if instance and by_instance(instance):
        return f"an instance {instance}, but neither AWS Neuron's driver nor a chip on the PCI bus; {_INSTALL}"
    return "no AWS Neuron device"


@final
class _Meeting:
    """All that is said of one machine, by the number of the chip that it is said of."""

    def __init__(
        self,
        tree: Tree,
        files: Mapping[int, ChipFiles],
        nodes: Mapping[int, bool],
        listing: Listing | None,
        gaps: list[str],
    ) -> None:
        self._tree, self._files, self._nodes, self._listing, self._gaps = tree, files, nodes, listing, gaps
        self._listed: Mapping[int, Listed] = listing.chips if listing is not None else {}
        self._faults = tree.faults
        self._places = Counter(chip.pci for chip in self._listed.values())

    def machine(self) -> Machine | Absent:
        """Return what they say together."""
        instance_type = self._instance_type()
        generation = self._generation(instance_type)
        if isinstance(generation, Absent):
            return generation
        if by_instance(instance_type) != generation:
            # What all others contradict.
            instance_type = ""
        present = sorted({*self._files, *self._nodes})
        if lost := sorted(self._listed.keys() - set(present)):
            self._faults.append(f"neuron-ls lists {_chips(lost)}, of which the driver has no files")
        if self._listing is not None and (lost := sorted(set(present) - self._listed.keys())):
            self._faults.append(f"neuron-ls does not list {_chips(lost)}, of which the driver has files")
        if self._files and (lost := sorted(set(present) - self._files.keys())):
            self._faults.append(f"/dev has {_chips(lost)}, and the driver's folder in /sys has not")
        if lost := sorted(set(present) - self._nodes.keys()):
            # In a container that was given some of the chips this is as it should be.
            self._gaps.append(f"/dev has no node of {_chips(lost)}, so that this process cannot use {_it(lost)}")
        lnc = self._lnc(generation)
        cores = {index: self._cores(index, generation, lnc) for index in present}
        if unknown := [index for index, count in cores.items() if count is None]:
            what = f"how many cores {_chips(unknown)} {'has' if len(unknown) == 1 else 'have'}"
            return Absent(f"{what} is not known: {'; '.join(self._faults[-3:])}", tuple(self._faults))
        neighbours = agreed_links(
            {index: files.neighbours for index, files in self._files.items()},
            {index: listed.neighbours for index, listed in self._listed.items()},
            present,
            generation,
            self._faults,
            self._gaps,
        )
        chips = tuple(self._chip(index, cores[index] or 0, generation, neighbours) for index in present)
        ultraserver = sysfs.ultraserver(self._tree, self._gaps)
        version = sysfs.driver(self._tree) or ""
        says_all = bool(self._files) and all(map(_says_all, self._files.values()))
        if sysfs.has_moved_files(version) and not says_all:
            self._gaps.append(
                f"driver {version} has some of its files in places that are not known here; what they say is taken "
                "from neuron-ls and the documents"
            )
        if self._tree.denied:
            self._gaps.append(f"this user may not read {', '.join(self._tree.denied[:3])}{_more(self._tree.denied)}")
        return Machine(
            generation,
            chips,
            instance_type,
            version,
            lnc,
            ultraserver,
            tuple(dict.fromkeys(self._faults)),
            tuple(dict.fromkeys(self._gaps)),
        )

    def _instance_type(self) -> str:
        said = {"the firmware": sysfs.instance_type(self._tree)}
        if self._listing is not None:
            said["neuron-ls"] = self._listing.instance_type
        return self._agreed("the instance type", {who: what for who, what in said.items() if what}) or ""

    def _generation(self, instance_type: str) -> Generation | Absent:
        """Return the one generation that all sources have, whoever of them says something."""
        said: dict[str, set[Generation]] = {}
        for index, files in self._files.items():
            for what, value in (
                ("device_name", files.name),
                ("instance_type", files.instance),
                ("arch_type", files.arch),
                ("a core's arch_type", files.core_arch),
            ):
                if value:
                    fits = {each for each in GENERATIONS if value in _names(each, what)}
                    said[f"neuron{index}'s {what} {value!r}"] = fits
        if instance_type:
            fitting = by_instance(instance_type)
            said[f"the instance type {instance_type}"] = {fitting} if fitting else set()
        if not said:
            bus = sysfs.on_the_bus(self._tree)
            said = {"the PCI bus": set(bus)} if bus else {}
        if not said:
            denied = f"; this user may not read {', '.join(self._tree.denied[:3])}" if self._tree.denied else ""
            return Absent(f"there are AWS Neuron devices, and nothing says of which kind{denied}", tuple(self._faults))
        common = set.intersection(*said.values())
        if len(common) == 1:
            return common.pop()
        # What one source alone says is set aside, if all others agree.
        counts = Counter(frozenset(fits) for fits in said.values())
        listed = "; ".join(f"{who}: {_or(fits)}" for who, fits in list(said.items())[:6])
        candidates = [each for each in GENERATIONS if sum(each in fits for fits in said.values()) == len(said) - 1]
        if len(said) > 2 and len(candidates) == 1 and len(counts) > 1:
            self._faults.append(f"what says of which kind the chips are does not agree: {listed}")
            return candidates[0]
        return Absent(f"of which kind the AWS Neuron devices are is not agreed on: {listed}", tuple(self._faults))

    def _lnc(self, generation: Generation) -> int | None:
        lnc = self._listing.lnc if self._listing is not None else None
        if lnc is not None and generation.lnc and lnc not in generation.lnc:
            allowed = " and ".join(map(str, generation.lnc))
            self._faults.append(f"neuron-ls says LNC {lnc}, and a {generation} has {allowed}")
            return None
        return lnc

    def _cores(self, index: int, generation: Generation, lnc: int | None) -> int | None:
        """Return how many physical cores a chip has: what most say."""
        said = {f"the documents, of a {generation}": generation.cores}
        if index in self._files:
            said["`core_count`"] = self._files[index].cores
            said["the number of its folders"] = self._files[index].folders or None
        if index in self._listed and (logical := self._listed[index].cores) is not None:
            said["neuron-ls"] = logical * (self._listed[index].lnc or lnc or 1)
        return self._most(f"the number of cores of neuron{index}", {who: said[who] for who in said if said[who]})

    def _chip(
        self, index: int, cores: int, generation: Generation, neighbours: Mapping[int, tuple[int, ...]] | None
    ) -> Chip:
        listed = self._listed.get(index)
        files = self._files.get(index)
        pci = listed.pci if listed else ""
        if pci and self._places[pci] > 1:
            both = [other for other, chip in self._listed.items() if chip.pci == pci]
            self._faults.append(f"neuron-ls says that {_chips(both)} are at one place on the PCI bus, {pci}")
            pci = ""
        nodes = {"neuron-ls": listed.numa if listed else None, "the PCI bus": sysfs.numa_node(self._tree, pci)}
        known = {who: node for who, node in nodes.items() if node is not None}
        return Chip(
            index=index,
            cores=cores,
            memory=self._memory(index, generation),
            neighbours=None if neighbours is None else neighbours.get(index, ()),
            is_open=self._nodes.get(index, False),
            pci=pci,
            numa=self._agreed(f"the NUMA node of neuron{index}", known),
            cpus=listed.cpus if listed else "",
            serial=files.serial if files else "",
            core_ids=listed.core_ids if listed else None,
            owners=listed.owners if listed else (),
        )

    def _memory(self, index: int, generation: Generation) -> int | None:
        documented = generation.memory
        listed = self._listed.get(index)
        if listed is None or listed.memory is None or documented is None:
            return documented if listed is None or listed.memory is None else listed.memory
        # Firmware keeps a little for itself; more than that is another unit, or a mistake.
        if not 0.9 * documented <= listed.memory <= 1.1 * documented:
            self._faults.append(
                f"neuron-ls says that neuron{index} has {listed.memory} bytes of memory, and the documents "
                f"{documented} of a {generation}"
            )
            return documented
        return listed.memory

    def _agreed(self, what: str, said: Mapping[str, T]) -> T | None:
        """Return what all say, None if they do not agree."""
        if len(set(said.values())) > 1:
            self._faults.append(f"{what} is not agreed on: {_said(said)}")
            return None
        return next(iter(said.values()), None)

    def _most(self, what: str, said: Mapping[str, T]) -> T | None:
        """Return what most say, None if that is nobody."""
        counts = Counter(said.values()).most_common(2)
        if len(counts) > 1:
            self._faults.append(f"{what} is not agreed on: {_said(said)}")
            return counts[0][0] if counts[0][1] > counts[1][1] else None
        return counts[0][0] if counts else None


def _names(generation: Generation, what: str) -> tuple[str, ...]:
    return {
        "device_name": (generation.name,),
        "instance_type": (generation.instance,),
        "arch_type": (generation.device_arch,),
        "a core's arch_type": (generation.core_arch,),
    }[what]


def _says_all(files: ChipFiles) -> bool:
    return bool(files.cores and files.folders and files.neighbours is not None and files.name and files.core_arch)


def _said(said: Mapping[str, object]) -> str:
    return ", ".join(f"{who} says {what}" for who, what in said.items())


def _or(fits: set[Generation]) -> str:
    return " or ".join(each.name for each in GENERATIONS if each in fits) or "none that is known"


def _chips(indices: Sequence[int]) -> str:
    return ", ".join(f"neuron{index}" for index in indices[:4]) + _more(indices, 4)


def _it(indices: Sequence[int]) -> str:
    return "it" if len(indices) == 1 else "them"


def _more(some: Sequence[object], shown: int = 3) -> str:
    return f" and {len(some) - shown} more" if len(some) > shown else ""
