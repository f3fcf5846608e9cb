"""What is found of each machine that is laid out here. None of it has run on hardware: see machines/README.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laid_out import MACHINES, NAMES, lay_out, take_neuron_ls

import devices
from devices.topology import Topology
from devices_neuron import NeuronBackend
from devices_neuron.discover import discover
from devices_neuron.machine import Absent, Machine, UltraServer
from devices_neuron.software import Software

GIB = 2**30
FITTING = Software("2.13.3.0", "2.13.0", (3, 12))


def torus(rows: int, columns: int) -> dict[int, set[int]]:
    """Return the neighbours in a torus whose places are counted row by row."""
    return {
        row * columns + column: {
            (row + 1) % rows * columns + column,
            (row - 1) % rows * columns + column,
            row * columns + (column + 1) % columns,
            row * columns + (column - 1) % columns,
        }
        for row in range(rows)
        for column in range(columns)
    }


def found(name: str, root: Path) -> Machine:
    machine = discover(lay_out(name, root))
    assert isinstance(machine, Machine), machine
    return machine


def backend(name: str, root: Path, **environment: str) -> NeuronBackend:
    return NeuronBackend(lay_out(name, root), environment, FITTING)


TORUS = torus(4, 4)
RING = {chip: {(chip - 1) % 12, (chip + 1) % 12} for chip in range(12)}
LINE = {chip: {chip - 1, chip + 1} & set(range(6)) for chip in range(6)}
ALONE: dict[int, set[int]] = {0: set()}


@pytest.mark.parametrize(
    ("name", "generation", "instance", "cores", "gib", "lnc", "neighbours"),
    [
        ("trn1.2xlarge", "Trainium1", "trn1.2xlarge", 2, 32, None, ALONE),
        ("trn1.32xlarge", "Trainium1", "trn1.32xlarge", 2, 32, None, TORUS),
        ("inf2.24xlarge", "Inferentia2", "inf2.24xlarge", 2, 32, None, LINE),
        ("inf2.48xlarge", "Inferentia2", "inf2.48xlarge", 2, 32, None, RING),
        ("trn2.3xlarge", "Trainium2", "trn2.3xlarge", 8, 96, 2, ALONE),
        ("trn2.48xlarge-lnc1", "Trainium2", "trn2.48xlarge", 8, 96, 1, TORUS),
        ("trn2.48xlarge-lnc2", "Trainium2", "trn2.48xlarge", 8, 96, 2, TORUS),
        ("trn2u.48xlarge", "Trainium2", "trn2u.48xlarge", 8, 96, 2, TORUS),
        ("trn3.48xlarge", "Trainium3", "trn3.48xlarge", 8, 144, None, {chip: set() for chip in range(16)}),
        ("trn3e.24xlarge", "Trainium3", "trn3e.24xlarge", 8, 144, None, {chip: set() for chip in range(4)}),
        ("old-driver", "Trainium2", "trn2.48xlarge", 8, 96, None, TORUS),
        ("container", "Trainium2", "trn2.48xlarge", 8, 96, None, TORUS),
    ],
)
def test_a_machine_is_as_its_documents_say_not_run_on_hardware(
    at: Callable[[str], Path],
    name: str,
    generation: str,
    instance: str,
    cores: int,
    gib: int,
    lnc: int | None,
    neighbours: dict[int, set[int]],
) -> None:
    machine = found(name, at(name))
    assert (machine.generation.name, machine.instance_type, machine.lnc) == (generation, instance, lnc)
    assert {chip.cores for chip in machine.chips} == {cores}
    assert {chip.memory for chip in machine.chips} == {gib * GIB}
    assert {chip.index: set(chip.neighbours or ()) for chip in machine.chips} == neighbours
    assert machine.faults == ()


def test_chips_have_their_places_on_the_bus_their_numa_nodes_and_their_cpus(at: Callable[[str], Path]) -> None:
    chips = found("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2")).chips
    assert [chip.numa for chip in chips] == [1] * 4 + [0] * 8 + [1] * 4
    assert (chips[0].pci, chips[0].cpus) == ("0000:cc:00.0", "48-95,144-191")
    assert (chips[15].pci, chips[4].cpus) == ("0000:f7:00.0", "0-47,96-143")
    assert chips[3].core_ids == (12, 13, 14, 15)


def test_a_machine_without_numa_nodes_has_none(at: Callable[[str], Path]) -> None:
    assert found("trn1.2xlarge", at("trn1.2xlarge")).chips[0].numa is None


def test_an_inferentia2_is_not_taken_for_a_trainium2_whose_chips_the_driver_calls_alike(tmp_path: Path) -> None:
    machine = discover_without_names(tmp_path)
    assert machine.generation.name == "Inferentia2"


def discover_without_names(root: Path) -> Machine:
    lay_out("inf2.48xlarge", root)
    for path in root.glob("sys/devices/virtual/neuron_device/neuron*/info/architecture/*e"):
        if path.name != "arch_type":
            path.unlink()
    (root / "sys/class/dmi/id/product_name").unlink()
    machine = discover(root)
    assert isinstance(machine, Machine)
    return machine


def test_a_machine_knows_its_ultraserver_and_its_place_there(at: Callable[[str], Path]) -> None:
    assert found("trn2u.48xlarge", at("trn2u.48xlarge")).ultraserver == UltraServer("9ff5434815c8bd80", 2, 4)


@pytest.mark.parametrize("name", ["trn2.48xlarge-lnc2", "trn1.32xlarge", "trn2.3xlarge", "old-driver"])
def test_a_machine_of_no_ultraserver_says_so(at: Callable[[str], Path], name: str) -> None:
    assert found(name, at(name)).ultraserver is None


def test_an_ultraserver_that_is_still_electing_is_not_known_yet(tmp_path: Path) -> None:
    lay_out("trn2u.48xlarge", tmp_path)
    (tmp_path / "sys/class/neuron_device/node_id_4").write_text("busy\n")
    machine = discover(tmp_path)
    assert isinstance(machine, Machine)
    assert machine.ultraserver is None
    assert any("still electing" in gap for gap in machine.gaps)


def test_a_trainium3_of_16_chips_is_joined_by_a_switch_whatever_table_its_driver_has(at: Callable[[str], Path]) -> None:
    machine = found("trn3.48xlarge", at("trn3.48xlarge"))
    assert any("by a switch" in gap for gap in machine.gaps)
    graph = backend("trn3.48xlarge", at("trn3.48xlarge")).topology()
    assert graph is not None
    assert graph.neighbours("neuron chip 3")[-1] == "neuronswitch"
    assert len(graph.links_from("neuronswitch")) == 16


def test_what_a_user_may_not_read_is_taken_from_the_documents_and_said(at: Callable[[str], Path]) -> None:
    machine = found("old-driver", at("old-driver"))
    assert any("taken from the documents" in gap for gap in machine.gaps)


def test_sysfs_alone_and_neuron_ls_alone_find_the_same_machine(tmp_path: Path) -> None:
    both = found("trn2.48xlarge-lnc2", tmp_path)
    take_neuron_ls(tmp_path)
    alone = discover(tmp_path)
    assert isinstance(alone, Machine)
    assert alone.faults == ()

    def plain(machine: Machine) -> list[Any]:
        return [(chip.index, chip.cores, chip.memory, set(chip.neighbours or ())) for chip in machine.chips]

    assert plain(alone) == plain(both)
    assert (alone.lnc, both.lnc) == (None, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trn3.48xlarge", "by a switch"),
        ("container", "/dev has no node of neuron0, neuron1, neuron2, neuron3 and 8 more"),
    ],
)
def test_what_could_not_be_found_out_is_part_of_the_reason(at: Callable[[str], Path], name: str, told: str) -> None:
    assert told in backend(name, at(name)).probe().reason


# What a process may use.


@pytest.mark.parametrize(
    ("name", "count", "gib", "lnc"),
    [
        ("trn2.3xlarge", 4, 24, 2),
        ("trn2.48xlarge-lnc1", 128, 12, 1),
        ("trn2.48xlarge-lnc2", 64, 24, 2),
        ("trn2u.48xlarge", 64, 24, 2),
        ("trn3.48xlarge", 64, 36, 2),
        ("trn3e.24xlarge", 16, 36, 2),
        ("old-driver", 64, 24, 2),
        ("container", 16, 24, 2),
    ],
)
def test_a_device_is_a_logical_core_with_its_share_of_memory_not_run_on_hardware(
    at: Callable[[str], Path], name: str, count: int, gib: int, lnc: int
) -> None:
    neuron = backend(name, at(name))
    assert neuron.probe().present, neuron.probe()
    listed = neuron.devices()
    assert [str(device) for device in listed] == [f"neuron:{index}" for index in range(count)]
    assert {device.memory for device in listed} == {gib * GIB}
    assert {device.name.partition(" at ")[2] for device in listed} == {f"LNC {lnc}"}
    assert f"{count} logical cores at LNC {lnc}" in neuron.probe().reason


def test_what_is_in_use_is_not_free(tmp_path: Path) -> None:
    [first, *_] = backend("trn2.48xlarge-lnc2", tmp_path).devices()
    assert first.free == 22 * GIB  # each of its two physical cores has 1 GiB in use
    (tmp_path / "sys/devices/virtual/neuron_device/neuron0/neuron_core1/stats/memory_usage/device_mem/total").unlink()
    [first, *_] = NeuronBackend(tmp_path, {}, FITTING).devices()
    assert first.free is None


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"NEURON_LOGICAL_NC_CONFIG": "1"}, 128),
        ({"NEURON_RT_VIRTUAL_CORE_SIZE": "1"}, 128),
        ({"NEURON_RT_VISIBLE_CORES": "5"}, 1),
        ({"NEURON_RT_VISIBLE_CORES": "16-31"}, 16),
        ({"NEURON_RT_VISIBLE_CORES": "8,9,10,11"}, 4),
        ({"NEURON_RT_NUM_CORES": "8"}, 8),
        ({"NEURON_RT_NUM_CORES": "0"}, 64),
        ({"NEURON_RT_NUM_CORES": "8", "NEURON_RT_VISIBLE_CORES": "0-3"}, 4),
    ],
)
def test_variables_say_which_cores_a_process_may_use(
    at: Callable[[str], Path], environment: dict[str, str], count: int
) -> None:
    listed = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), **environment).devices()
    assert [device.index for device in listed] == list(range(count))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"NEURON_LOGICAL_NC_CONFIG": "4"}, "NEURON_LOGICAL_NC_CONFIG=4: a Trainium2 has LNC 1 and 2"),
        ({"NEURON_LOGICAL_NC_CONFIG": "two"}, "a Trainium2 has LNC 1 and 2"),
        ({"NEURON_RT_VISIBLE_CORES": "64"}, "there is no logical core 64"),
        ({"NEURON_RT_VISIBLE_CORES": "0,2"}, "cores that follow each other"),
        ({"NEURON_RT_VISIBLE_CORES": "3-1"}, "is no range of cores"),
        ({"NEURON_RT_VISIBLE_CORES": "all"}, "'all' is neither a core nor a range"),
        ({"NEURON_RT_VISIBLE_CORES": "0-9999999"}, "is neither a core nor a range"),
        ({"NEURON_RT_NUM_CORES": "65"}, "there are 64 logical cores"),
        ({"NEURON_RT_NUM_CORES": "-1"}, "NEURON_RT_NUM_CORES=-1 is no number of cores"),
    ],
)
def test_a_variable_that_asks_for_what_is_not_there_is_the_reason_of_an_absence(
    at: Callable[[str], Path], environment: dict[str, str], reason: str
) -> None:
    neuron = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), **environment)
    assert not neuron.probe().present
    assert reason in neuron.probe().reason
    assert neuron.devices() == ()


# Why it is absent.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-device", "no AWS Neuron device"),
        ("driver-not-loaded", "the driver of AWS Neuron is not loaded: the PCI bus has 16 Trainium2 chips; install"),
        (
            "trn1.32xlarge",
            "16 Trainium1 chips (trn1.32xlarge): native TorchNeuron runs on Trainium2 and Trainium3 only",
        ),
        ("inf2.48xlarge", "12 Inferentia2 chips (inf2.48xlarge): native TorchNeuron runs on Trainium2 and Trainium3"),
        ("trn1.2xlarge", "1 Trainium1 chip (trn1.2xlarge): native TorchNeuron"),
    ],
)
def test_an_absence_has_its_reason(at: Callable[[str], Path], name: str, reason: str) -> None:
    neuron = backend(name, at(name))
    assert not neuron.probe().present
    assert neuron.probe().reason.startswith(reason)
    assert neuron.devices() == ()
    assert neuron.topology() is None


def test_what_an_older_chip_needs_is_said(at: Callable[[str], Path]) -> None:
    assert "torch-xla and Neuron SDK 2.31 or older" in backend("inf2.48xlarge", at("inf2.48xlarge")).probe().reason


def test_a_driver_that_has_made_no_device_is_told_from_one_that_is_not_loaded(tmp_path: Path) -> None:
    lay_out("driver-not-loaded", tmp_path)
    (tmp_path / "sys/module/neuron").mkdir(parents=True)
    (tmp_path / "sys/module/neuron/version").write_text("2.31.7.0\n")
    absent = discover(tmp_path)
    assert isinstance(absent, Absent)
    assert absent.reason.startswith(
        "driver 2.31.7.0 of AWS Neuron is loaded and has made no device, though the PCI bus"
    )


def test_devices_without_nodes_in_dev_cannot_be_used(tmp_path: Path) -> None:
    neuron = backend("trn2.48xlarge-lnc2", tmp_path)
    for path in tmp_path.glob("dev/neuron*"):
        path.unlink()
    assert "/dev has no node of them" in neuron.probe().reason


@pytest.mark.parametrize(
    ("software", "reason"),
    [
        (Software(None, "2.13.0", (3, 12)), "torch_neuronx is not installed"),
        (Software("2.9.0.2.10", "2.9.0", (3, 12)), "torch_neuronx 2.9.0.2.10 is of the generation that was built on"),
        (Software("2.13.3.0", "2.13.0", (3, 11)), "Python is 3.11, and native TorchNeuron needs 3.12 or later"),
        (Software("2.13.3.0", "2.12.1", (3, 12)), "torch is 2.12.1, and torch_neuronx 2.13.3.0 needs torch 2.13 or"),
        (Software("2.13.3.0", "2.15.0", (3, 12)), "torch is 2.15.0, and torch_neuronx 2.13.3.0 needs torch 2.13 or"),
        (Software("2.13.3.0", "2.14.0", (3, 12)), "torch is 2.14.0, and torch_neuronx 2.13.3.0 is for torch 2.13"),
        (Software("2.13.3.0", None, (3, 12)), "torch is not installed"),
        (Software("nightly", "2.13.0", (3, 12)), "torch_neuronx is of version 'nightly', which is none"),
    ],
)
def test_software_that_does_not_fit_is_a_reason(tmp_path: Path, software: Software, reason: str) -> None:
    neuron = NeuronBackend(lay_out("trn2.3xlarge", tmp_path), {}, software)
    assert not neuron.probe().present
    assert reason in neuron.probe().reason


@pytest.mark.parametrize(
    "software",
    [Software("2.13.3.0", "2.13.0+cpu", (3, 12)), Software("2.14.3.0", "2.14.1", (3, 14))],
)
def test_software_that_fits_is_none(tmp_path: Path, software: Software) -> None:
    assert NeuronBackend(lay_out("trn2.3xlarge", tmp_path), {}, software).probe().present


def test_this_machine_has_no_neuron_device_and_says_so_without_importing_torch_neuronx() -> None:
    assert "neuron" in devices.backends()
    probe = NeuronBackend().probe()
    assert not probe.present or probe.reason


# Topology and capabilities.


def graph_of(name: str, root: Path, **environment: str) -> Topology:
    graph = backend(name, root, **environment).topology()
    assert graph is not None
    return graph


def chips_of(graph: Topology) -> dict[int, set[int]]:
    """Return which chips are joined in a topology."""
    return {
        number(node.name): {number(peer) for peer in graph.neighbours(node.name) if peer.startswith("neuron chip ")}
        for node in graph.nodes
        if node.name.startswith("neuron chip ")
    }


def number(name: str) -> int:
    return int(name.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("name", "joined"),
    [("trn2.48xlarge-lnc1", TORUS), ("trn2u.48xlarge", TORUS), ("trn2.3xlarge", ALONE), ("old-driver", TORUS)],
)
def test_chips_are_joined_as_the_machine_says(
    at: Callable[[str], Path], name: str, joined: dict[int, set[int]]
) -> None:
    graph = graph_of(name, at(name))
    assert chips_of(graph) == joined
    graph.require_connected()
    graph.require_bandwidths() if len(joined) > 1 else None


def test_links_have_the_figures_of_the_catalogue_by_the_name_of_their_source(at: Callable[[str], Path]) -> None:
    graph = graph_of("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"))
    [link] = [link for link in graph.links_from("neuron chip 0") if link.target == "neuron chip 12"]
    # 1024 GB/s of a chip's links within the machine, halved for one direction, over its four neighbours.
    assert (link.bandwidth, link.latency) == (1024e9 / 2 / 4, 2e-6)
    assert link.origin.startswith("catalogue: trn2.48xlarge, link_bandwidth_one_way")
    assert link.status == "inferred"
    [up] = graph.links_from("neuron:0")
    assert up.target == "neuron chip 0"
    assert up.bandwidth == 3.5e12 / 4


def test_a_machine_that_the_catalogue_has_not_gets_no_figures_of_another(tmp_path: Path) -> None:
    lay_out("trn2.48xlarge-lnc2", tmp_path)
    take_neuron_ls(tmp_path)
    (tmp_path / "sys/class/dmi/id/product_name").write_text("trn2x.48xlarge\n")
    graph = NeuronBackend(tmp_path, {}, FITTING).topology()
    assert graph is not None
    assert chips_of(graph) == TORUS
    assert {link.bandwidth for link in graph.links if link.kind == "neuronlink"} == {None}


def test_devices_carry_their_core_chip_and_numa_node(at: Callable[[str], Path]) -> None:
    graph = graph_of("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), NEURON_RT_VISIBLE_CORES="60-63")
    assert len(graph.devices) == 4
    assert dict(graph.node("neuron:0").attributes) == {
        "core": 60, "chip": 15, "lnc": 2, "memory": 24 * GIB, "numa": 1,
    }  # fmt: skip
    assert graph.node("neuron chip 2").attributes["serial"] == "9ff5434815c8bd82"


def test_a_rank_that_has_one_core_has_it_in_the_graph_under_its_devices_name(at: Callable[[str], Path]) -> None:
    told = {"NEURON_RT_VISIBLE_CORES": "37", "LOCAL_RANK": "5", "WORLD_SIZE": "8"}
    neuron = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"), **told)
    [device] = neuron.devices()
    graph = neuron.topology()
    assert graph is not None
    assert [node.name for node in graph.devices] == [str(device)] == ["neuron:5"]
    assert graph.neighbours(str(device)) == ("neuron chip 9",)
    assert neuron.capabilities(device).links == ()


def test_a_chip_says_of_which_ultraserver_it_is(at: Callable[[str], Path]) -> None:
    attributes = graph_of("trn2u.48xlarge", at("trn2u.48xlarge")).node("neuron chip 0").attributes
    assert (attributes["ultraserver"], attributes["node"]) == ("9ff5434815c8bd80", 2)


def test_capabilities_are_those_of_the_catalogue(at: Callable[[str], Path]) -> None:
    import torch

    neuron = backend("trn2.48xlarge-lnc2", at("trn2.48xlarge-lnc2"))
    [first, *_] = neuron.devices()
    found = neuron.capabilities(first)
    assert [size for size in range(1, 129) if found.allows_group_of(size)] == [1, 2, 4, 8, 16, 32, 64, 96, 128]
    assert set(found.reductions) == {"sum", "min", "max"}
    assert torch.bfloat16 in found.dtypes
    assert torch.float8_e4m3fn not in found.dtypes  # a Trainium2 has its own, up to 240
    assert torch.float64 not in found.dtypes
    assert (found.max_groups, found.max_streams) == (16, 4)
    peers = {link.peer for link in found.links}
    # The other three of its chip, and the four of each of its four neighbours.
    assert peers == {f"neuron:{chip * 4 + core}" for chip in (0, 1, 3, 4, 12) for core in range(4)} - {"neuron:0"}
    assert neuron.capabilities(first) == found


def test_a_trainium3_has_the_float8_that_a_trainium2_lacks(at: Callable[[str], Path]) -> None:
    import torch

    neuron = backend("trn3e.24xlarge", at("trn3e.24xlarge"))
    assert torch.float8_e4m3fn in neuron.capabilities(neuron.devices()[0]).dtypes


def test_through_a_switch_a_core_reaches_those_of_every_chip(at: Callable[[str], Path]) -> None:
    neuron = backend("trn3e.24xlarge", at("trn3e.24xlarge"))
    found = {link.peer: link.bandwidth for link in neuron.capabilities(neuron.devices()[5]).links}
    assert set(found) == {f"neuron:{core}" for core in range(16)} - {"neuron:5"}
    assert found["neuron:0"] == 256e9  # four PCIe Gen6 x8 links in a sled, 64 GB/s each in one direction


def test_every_machine_that_is_laid_out_states_its_source() -> None:
    table = (MACHINES / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}`" in table
        first = (MACHINES / f"{name}.tree").read_text().splitlines()[0]
        assert first.startswith("# ")
