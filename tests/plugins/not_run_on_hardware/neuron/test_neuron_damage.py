"""Damaged output and damaged files: a reason, never a crash, and never another machine than the one that is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from laid_out import MACHINES, chip_folder, give_neuron_ls, lay_out, remove, take_neuron_ls, write

from devices_neuron import NeuronBackend
from devices_neuron.discover import discover
from devices_neuron.machine import Absent, Machine
from devices_neuron.neuron_ls import PATH, Listing, ListingError, parse
from devices_neuron.software import Software

GIB = 2**30
FITTING = Software("2.13.3.0", "2.13.0", (3, 12))
NAME = "trn2.48xlarge-lnc2"
TEXT = (MACHINES / f"{NAME}.neuron-ls.json").read_text()
RECORDS: list[dict[str, Any]] = json.loads(TEXT)
TORUS = {record["neuron_device"]: set(record["connected_to"]) for record in RECORDS}


def assert_right_or_a_reason(found: Machine | Absent) -> str:
    """Check that what was found is the machine that is there, or less of it with a reason; return all that it says."""
    if isinstance(found, Absent):
        assert found.reason.strip()
        return " / ".join([found.reason, *found.faults])
    said = [*found.faults, *found.gaps]
    assert found.generation.name == "Trainium2"
    assert found.instance_type in ("trn2.48xlarge", "")
    for chip in found.chips:
        assert (chip.cores, chip.memory) == (8, 96 * GIB)
        assert chip.neighbours is None or set(chip.neighbours) == TORUS[chip.index] - lost(found)
        assert chip.numa in (None, 1 if chip.index // 4 in (0, 3) else 0)
    if len(found.chips) < 16 or any(chip.neighbours is None for chip in found.chips):
        assert said
    assert found.lnc in (2, None)
    return " / ".join(said)


def lost(machine: Machine) -> set[int]:
    return set(range(16)) - {chip.index for chip in machine.chips}


def with_records(change: Callable[[list[dict[str, Any]]], Any]) -> str:
    """Return the output with its records changed, in place or anew."""
    records = json.loads(TEXT)
    changed = change(records)
    return json.dumps(records if changed is None else changed)


def set_in(index: int, key: str, value: Any) -> str:
    return with_records(lambda records: records[index].update({key: value}))


OUTPUTS = {
    "empty": ("", "its output is no JSON"),
    "cut in the middle": (TEXT[: len(TEXT) // 2], "its output is no JSON"),
    "an error for an output": ("unknown flag `j'", "begins with \"unknown flag `j'\", which is neither"),
    "a text": ('"devices"', "begins with '\"devices\"'"),
    "an object without devices": ("{}", "has no list of devices"),
    "an object of devices": ('{"neuron_devices": {"0": {}}}', "has no list of devices"),
    "a number among the records": (with_records(lambda records: [*records, 16]), "holds something that is no record"),
    "a record without its number": (
        with_records(lambda records: records[3].pop("neuron_device") and None), "has no `neuron_device`",
    ),
    "a number that is a text": (set_in(2, "neuron_device", "2"), "its `neuron_device` is '2'"),
    "a negative number": (set_in(2, "neuron_device", -1), "its `neuron_device` is -1"),
    "a truth for a number": (set_in(1, "neuron_device", True), "its `neuron_device` is True"),
    "a device that is listed twice": (set_in(5, "neuron_device", 4), "it lists device 4 twice"),
    "a device too many": (
        with_records(lambda records: [*records, {"neuron_device": 16, "nc_count": 1, "neuroncore_ids": [64]}]),
        "neuron-ls lists neuron16, of which the driver has no files",
    ),
    "a device too few": (with_records(lambda records: records[:-1]), "does not list neuron15"),
    "memory in GiB": (set_in(0, "memory_size", 96), "has 96 bytes of memory"),
    "memory in MiB": (set_in(0, "memory_size", 98304), "has 98304 bytes of memory"),
    "memory with its unit": (set_in(0, "memory_size", "96 GB"), "its `memory_size` is '96 GB'"),
    "memory of a fraction": (set_in(0, "memory_size", 1.03e11), "its `memory_size` is 103000000000.0"),
    "memory beyond all measure": (set_in(0, "memory_size", 10**30), "its `memory_size` is 1000000000000"),
    "memory of nothing": (set_in(0, "memory_size", 0), "its `memory_size` is 0"),
    "cores beyond all measure": (set_in(0, "nc_count", 10**9), "its `nc_count` is 1000000000"),
    "cores of another number than are listed": (set_in(0, "nc_count", 8), "says nc_count 8 and lists 4"),
    "cores of another number than the driver has": (
        with_records(lambda records: records[0].update(nc_count=2, neuroncore_ids=[0, 1])),
        "the number of cores of neuron0 is not agreed on",
    ),
    "a core that is listed twice": (set_in(0, "neuroncore_ids", [0, 1, 1, 3]), "holds one number twice"),
    "cores that are no list": (set_in(0, "neuroncore_ids", "0-3"), "its `neuroncore_ids` is '0-3'"),
    "cores that another chip has": (set_in(1, "neuroncore_ids", [0, 1, 2, 3]), "it gives core 0 to device 0 and"),
    "an LNC of its own": (set_in(0, "logical_neuroncore_config", 1), "it says more than one LNC: 1, 2"),
    "an LNC that is none": (set_in(0, "logical_neuroncore_config", "two"), "its logical NeuronCore config is 'two'"),
    "an LNC that the chip has not": (
        with_records(lambda records: [record.update(logical_neuroncore_config=4) for record in records] and None),
        "neuron-ls says LNC 4, and a Trainium2 has 1 and 2",
    ),
    "neighbours as a text": (set_in(0, "connected_to", "12, 3, 4, 1"), "its `connected_to` is '12, 3, 4, 1'"),
    "neighbours as texts": (set_in(0, "connected_to", ["12", "3"]), "its `connected_to` holds '12'"),
    "a neighbour that is no chip": (set_in(0, "connected_to", [12, 3, 4, 99]), "its `connected_to` holds 99"),
    "neighbours that the driver has not": (
        set_in(0, "connected_to", [2, 3, 4, 1]), "the neighbours of neuron0 are not agreed on",
    ),
    "a NUMA node that the bus has not": (set_in(0, "numa_node", "0"), "the NUMA node of neuron0 is not agreed on"),
    "a NUMA node that is none": (set_in(0, "numa_node", "north"), "its `numa_node` is 'north'"),
    "a place that is none": (set_in(0, "bdf", "slot 4"), "its `bdf` is 'slot 4'"),
    "a place that another chip has": (
        set_in(15, "bdf", RECORDS[0]["bdf"]), "neuron0, neuron15 are at one place on the PCI bus, 0000:cc:00.0",
    ),
    "CPUs that are none": (set_in(0, "cpu_affinity", "96 GiB"), "its `cpu_affinity` is '96 GiB'"),
    "no device at all": ("[]", "neuron-ls does not list neuron0, neuron1, neuron2, neuron3 and 12 more"),
    "processes that are no list": (set_in(0, "neuron_processes", {"pid": 1}), "its `neuron_processes` is {'pid': 1}"),
    "a process whose number is a text": (set_in(0, "neuron_processes", [{"pid": "1"}]), "its `pid` is '1'"),
    "an instance type of its own": (
        with_records(lambda records: [record.update(instance_type="trn1.32xlarge") for record in records] and None),
        "the instance type is not agreed on",
    ),
    "a list in a list": ("[" * 100_000, "its output is no JSON"),
    "bytes that are no text": ("\x00\x01\x02", "begins with"),
    "another tool's output": ("GPU 0: NVIDIA A100", "begins with 'GPU 0: NVIDIA A100'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a machine that is whole, for tests that change only what neuron-ls says."""
    return lay_out(NAME, tmp_path_factory.mktemp("healthy"))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_damaged_output_is_a_fault_and_the_driver_is_believed(healthy: Path, kind: str) -> None:
    output, fault = OUTPUTS[kind]
    found = discover(healthy, lambda root: parse(output))
    said = assert_right_or_a_reason(found)
    assert fault in said
    assert isinstance(found, Machine)
    assert len(found.chips) == 16


# Only another source shows that this is wrong.
UNSEEN = {"a NUMA node that the bus has not"}


@pytest.mark.parametrize("kind", [kind for kind in OUTPUTS if kind not in UNSEEN])
def test_damaged_output_with_nothing_else_to_go_by_is_never_another_machine(tmp_path: Path, kind: str) -> None:
    alone(tmp_path)
    assert assert_right_or_a_reason(discover(tmp_path, lambda root: parse(OUTPUTS[kind][0])))


def alone(root: Path) -> None:
    """Lay out a machine of which the driver says nothing: nodes in /dev, and the firmware's instance type."""
    write(root / "sys/class/dmi/id/product_name", "trn2.48xlarge")
    for chip in range(16):
        write(root / f"dev/neuron{chip}", "")


@pytest.mark.parametrize("form", ["a list", "with headings", "in an object", "after lines"])
def test_every_form_of_the_output_says_the_same(form: str) -> None:
    output = {
        "a list": TEXT,
        "with headings": with_records(
            lambda records: [{"instance_type": "trn2.48xlarge", "instance_id": "i-0", **record} for record in records]
        ),
        "in an object": json.dumps(
            {"instance_type": "trn2.48xlarge", "logical_neuroncore_config": 2, "neuron_devices": RECORDS}
        ),
        "after lines": f"instance-type: trn2.48xlarge\ninstance-id: i-0\nlogical-neuroncore-config: 2\n{TEXT}",
    }[form]
    found = parse(output)
    assert found.chips == parse(TEXT).chips
    assert found.instance_type == ("" if form == "a list" else "trn2.48xlarge")
    assert found.lnc == 2


@pytest.mark.parametrize("form", ["a list", "with headings", "after lines"])
def test_output_that_is_cut_anywhere_is_refused_or_whole(form: str) -> None:
    whole = parse(TEXT)
    head = "instance-type: trn2.48xlarge\nlogical-neuroncore-config: 2\n" if form == "after lines" else ""
    text = head + TEXT
    if form == "with headings":
        text = json.dumps({"instance_type": "trn2.48xlarge", "neuron_devices": RECORDS}, indent=1)
    for at in range(0, len(text), 50):
        try:
            found = parse(text[:at])
        except ListingError:
            continue
        assert found.chips == whole.chips


@pytest.mark.parametrize("key", sorted(RECORDS[0]))
def test_output_that_lacks_a_field_is_right_without_it_or_has_a_reason(tmp_path: Path, key: str) -> None:
    alone(tmp_path)
    for index in range(16):
        text = with_records(lambda records, index=index: records[index].pop(key, 0) and None)  # type: ignore[misc]
        assert_right_or_a_reason(discover(tmp_path, lambda root, text=text: parse(text)))  # type: ignore[misc]


@pytest.mark.parametrize("key", sorted(RECORDS[0]))
@pytest.mark.parametrize("value", [None, "", "x", -1, 10**40, 1.5, True, [], {}, [None], "12, 3"], ids=str)
def test_a_field_with_anything_in_it_is_right_or_has_a_reason(tmp_path: Path, key: str, value: Any) -> None:
    alone(tmp_path)
    assert_right_or_a_reason(discover(tmp_path, lambda root: parse(set_in(7, key, value))))


@pytest.mark.parametrize("has_listing", [True, False], ids=["with neuron-ls", "without"])
@pytest.mark.parametrize("left", ["no folder", "nothing", "cores", "architecture"])
def test_a_driver_that_has_moved_its_files_is_done_without(tmp_path: Path, left: str, has_listing: bool) -> None:
    lay_out(NAME, tmp_path)
    if not has_listing:
        take_neuron_ls(tmp_path)
    write(tmp_path / "sys/module/neuron/version", "2.31.7.0")
    for chip in range(16):
        if left == "no folder":
            remove(chip_folder(tmp_path, chip))
            continue
        for path in chip_folder(tmp_path, chip).iterdir():
            if not path.name.startswith({"cores": "neuron_core", "architecture": "info"}.get(left, "nothing")):
                remove(path)
    found = discover(tmp_path)
    assert isinstance(found, Machine)
    said = assert_right_or_a_reason(found)
    assert "driver 2.31.7.0 has some of its files in places that are not known here" in said
    assert found.faults == ()
    assert [set(chip.neighbours or ()) for chip in found.chips] == [TORUS[chip] for chip in range(16)]


# The command itself.


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("#!/bin/sh\nexit 127\n", "it ended with status 127"),
        ("#!/bin/sh\necho no such device >&2\nexit 1\n", "it ended with status 1: no such device"),
        ("#!/nowhere/sh\n", "it cannot be started"),
        ("#!/bin/sh\nkill -9 $$\n", "it ended with status -9"),
        ("#!/bin/sh\nprintf '\\377\\376'\n", "its output begins with"),
    ],
)
def test_a_command_that_fails_is_a_fault(tmp_path: Path, script: str, fault: str) -> None:
    lay_out(NAME, tmp_path)
    (tmp_path / PATH).write_text(script)
    assert fault in assert_right_or_a_reason(discover(tmp_path))


def test_a_command_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices_neuron.neuron_ls.WITHIN", 0.1)
    lay_out(NAME, tmp_path)
    (tmp_path / PATH).write_text("#!/bin/sh\nexec sleep 60\n")
    assert "it did not answer within 0.1 s" in assert_right_or_a_reason(discover(tmp_path))


def test_a_command_that_is_not_executable_is_a_fault(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    (tmp_path / PATH).chmod(0o644)
    assert "it cannot be started" in assert_right_or_a_reason(discover(tmp_path))


def test_a_machine_without_the_command_is_no_fault(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    take_neuron_ls(tmp_path)
    found = discover(tmp_path)
    assert isinstance(found, Machine)
    assert found.faults == ()


# The driver's files.


def files_of_chip(root: Path) -> Iterator[str]:
    """Return the paths of one chip's files, and of the machine's, that are read."""
    here = chip_folder(root, 5)
    for path in (*here.glob("*"), *here.glob("info/**/*"), *here.glob("neuron_core0/**/arch_type")):
        if path.is_file():
            yield str(path.relative_to(root))
    yield "sys/class/dmi/id/product_name"
    yield "sys/module/neuron/version"
    yield "sys/class/neuron_device/node_id_4"
    yield "sys/class/neuron_device/server_id_4"


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "a folder": to_folder,
    "a link to itself": to_loop,
    "a FIFO": to_fifo,
    "without end": to_huge,
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "words": lambda path: path.write_text("not available\n"),
    "a huge number": lambda path: path.write_text("9" * 400),
    "a negative number": lambda path: path.write_text("-7\n"),
    "another number": lambda path: path.write_text("3\n"),
    "another unit": lambda path: path.write_text("8 cores\n"),
    "a name that nobody has": lambda path: path.write_text("Trainium9\n"),
    "another chip's name": lambda path: path.write_text("Trainium1\n"),
    "another chip's neighbours": lambda path: path.write_text("15, 2, 7, 0\n"),
    "half of its neighbours": lambda path: path.write_text("1, 4\n"),
    "its neighbours twice": lambda path: path.write_text("1, 4, 9, 6, 6\n"),
    "itself for a neighbour": lambda path: path.write_text("1, 4, 9, 5\n"),
}


@pytest.mark.parametrize("has_tool", [True, False], ids=["with neuron-ls", "without"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_never_another_machine(
    tmp_path_factory: pytest.TempPathFactory, kind: str, has_tool: bool
) -> None:
    root = lay_out(NAME, tmp_path_factory.mktemp("machine"))
    listing = parse(TEXT)

    def ask(_: Path) -> Listing | None:
        return listing if has_tool else None

    for name in list(files_of_chip(root)):
        path, kept = root / name, (root / name).read_bytes()
        DAMAGES[kind](path)
        assert_right_or_a_reason(discover(root, ask))
        if os.path.lexists(path):
            remove(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda root: write(chip_folder(root, 5) / "core_count", "88"), "says '88', which is no number from 1 to 64"),
        (
            lambda root: write(chip_folder(root, 5) / "core_count", "4"),
            "the number of cores of neuron5 is not agreed on",
        ),
        (lambda root: to_folder(chip_folder(root, 5) / "core_count"), "core_count is no file"),
        (lambda root: to_loop(chip_folder(root, 5) / "connected_devices"), "connected_devices cannot be read"),
        (lambda root: to_huge(chip_folder(root, 5) / "connected_devices"), "is longer than"),
        (lambda root: write(chip_folder(root, 5) / "connected_devices", "1; 4; 9; 6"), "which is no list of chips"),
        (lambda root: write(chip_folder(root, 5) / "connected_devices", "1, 4, 9"), "are not agreed on"),
        (
            lambda root: write(chip_folder(root, 5) / "info/architecture/device_name", "Trainium1"),
            "what says of which kind the chips are does not agree",
        ),
        (lambda root: remove(chip_folder(root, 5)), "/dev has neuron5, and the driver's folder in /sys has not"),
        (lambda root: write(root / "sys/class/neuron_device/node_id_4", "9"), "'9', which is no number from -1 to 3"),
        (lambda root: write(root / "sys/class/neuron_device/node_id_4", "1"), "and server_id_4 that there is no"),
        (lambda root: write(root / "sys/class/dmi/id/product_name", "trn1.32xlarge"), "does not agree"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], object], fault: str) -> None:
    lay_out(NAME, tmp_path)
    damage(tmp_path)
    found = discover(tmp_path)
    said = " / ".join(found.faults)
    assert fault in said
    assert_right_or_a_reason(found)


def test_a_number_of_cores_that_no_two_sources_agree_on_is_not_known(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    take_neuron_ls(tmp_path)
    write(chip_folder(tmp_path, 5) / "core_count", "6")
    remove(chip_folder(tmp_path, 5) / "neuron_core7")
    found = discover(tmp_path)
    assert isinstance(found, Absent)
    assert found.reason.startswith("how many cores neuron5 has is not known: ")
    assert "`core_count` says 6, the number of its folders says 7" in found.reason


def test_neighbours_that_do_not_agree_with_each_other_make_no_topology(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    take_neuron_ls(tmp_path)
    write(chip_folder(tmp_path, 5) / "connected_devices", "1, 4, 9")
    neuron = NeuronBackend(tmp_path, {}, FITTING)
    assert any("that neuron6 is joined to neuron5, and not the other way" in each for each in neuron.contradictions())
    graph = neuron.topology()
    assert graph is not None
    assert {link.kind for link in graph.links} == {"chip"}  # within the chips; between them nothing is known
    assert neuron.probe().present


def test_neighbours_that_agree_with_each_other_and_are_not_the_documents_make_no_topology(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    take_neuron_ls(tmp_path)
    for chip in range(16):
        write(chip_folder(tmp_path, chip) / "connected_devices", f"{(chip - 1) % 16}, {(chip + 1) % 16}")
    found = discover(tmp_path)
    assert isinstance(found, Machine)
    assert {chip.neighbours for chip in found.chips} == {None}
    assert any("it is not the torus 4x4 of the documents" in fault for fault in found.faults)


def test_a_user_who_is_not_root_gets_the_machine_and_a_reason_for_what_is_missing(as_a_user: Path) -> None:
    found = discover(as_a_user)
    said = assert_right_or_a_reason(found)
    assert "this user may not read" in said
    assert "is taken from the documents" in said
    assert found.faults == ()
    assert not any(chip.is_open for chip in found.chips if isinstance(found, Machine))  # type: ignore[union-attr]


def test_devices_that_a_user_may_not_open_are_absent_with_that_reason(as_a_user: Path) -> None:
    probe = NeuronBackend(as_a_user, {}, FITTING).probe()
    assert not probe.present
    assert "this user may not open /dev/neuron0; let it read and write there" in probe.reason


def test_a_device_that_is_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    for chip in range(16):
        to_folder(tmp_path / f"dev/neuron{chip}")
    probe = NeuronBackend(tmp_path, {}, FITTING).probe()
    assert not probe.present
    assert "this user may not open /dev/neuron0" in probe.reason


def test_names_that_the_driver_does_not_make_are_no_chips(tmp_path: Path) -> None:
    lay_out(NAME, tmp_path)
    for name in ("neuron", "neuron01", "neuron64", "neuron-1", "neuron3x", "neuron99999999999999999999"):
        write(tmp_path / "dev" / name, "")
        write(tmp_path / "sys/devices/virtual/neuron_device" / name / "core_count", "8")
    give_neuron_ls(tmp_path, TEXT)
    found = discover(tmp_path)
    assert isinstance(found, Machine)
    assert [chip.index for chip in found.chips] == list(range(16))
    assert found.faults == ()
