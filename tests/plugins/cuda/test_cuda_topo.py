"""Reading `nvidia-smi topo -m`: whole, and damaged in every way that has been seen or can be thought of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_claims import wrong
from cuda_machines import FOLDER, MATRICES, machine, text

from devices.errors import TopologyError
from devices_cuda.compare import completed, disagreements
from devices_cuda.files import matrix_of_this_host, read_machine
from devices_cuda.graph import topology
from devices_cuda.machine import Machine, Nearness, Pair
from devices_cuda.record import RecordError
from devices_cuda.topo import read_matrix

MEASURED = """\
        GPU0    GPU1    GPU2    GPU3    GPU4    GPU5    GPU6    GPU7    NIC0    NIC1    NIC2    NIC3    NIC4    NIC5    CPU Affinity    NUMA Affinity   GPU NUMA ID
GPU0     X      NV18    NV18    NV18    NV18    NV18    NV18    NV18    PIX     SYS     SYS     SYS     SYS     SYS     0-47,96-143     0               N/A
GPU1    NV18     X      NV18    NV18    NV18    NV18    NV18    NV18    SYS     SYS     SYS     SYS     SYS     SYS     0-47,96-143     0               N/A
"""  # noqa: E501
"""As it was printed on a machine (NCCL issue #1357, 2024-07-12)."""

SMALL = """\
\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tPHB\tPIX\t0-7\t0\t\tN/A
GPU1\tPHB\t X \tPHB\t0-7\t0\t\tN/A
NIC0\tPIX\tPHB\t X

Legend:

  X    = Self

NIC Legend:

  NIC0: mlx5_0

"""


def test_the_rows_that_were_measured_are_in_the_file_as_they_were_printed() -> None:
    assert MEASURED in text("h100-four-nics.txt")


def test_a_small_matrix_is_read_cell_by_cell() -> None:
    found = read_matrix(SMALL)
    assert [(gpu.index, gpu.numa, gpu.memory_numa) for gpu in found.gpus] == [(0, 0, None), (1, 0, None)]
    assert found.pairs == (Pair(0, 1, ancestor="hostbridge", nvlinks=0),)
    assert found.nearness == (Nearness(0, "mlx5_0", "single"), Nearness(1, "mlx5_0", "hostbridge"))


@pytest.mark.parametrize(
    ("name", "gpus", "nics", "nvlinks", "numa", "memory_numa"),
    [
        ("dgx-a100.txt", 8, 12, {12}, [3, 3, 1, 1, 7, 7, 5, 5], [None] * 8),
        ("hgx-h100.txt", 8, 8, {18}, [0] * 4 + [1] * 4, [None] * 8),
        ("h100-four-nics.txt", 8, 6, {18}, [0] * 4 + [1] * 4, [None] * 8),
        ("gb200-tray.txt", 4, 6, {18}, [0, 0, 1, 1], [2, 10, 18, 26]),
        ("a100-pcie-bridges.txt", 8, 0, {0, 12}, [0] * 4 + [1] * 4, [None] * 8),
        ("dgx-2.txt", 16, 0, {6}, [0] * 8 + [1] * 8, [None] * 16),
    ],
)
def test_what_a_matrix_shows_becomes_a_machine(
    name: str, gpus: int, nics: int, nvlinks: set[int], numa: list[int], memory_numa: list[int | None]
) -> None:
    found = machine(name)
    assert (len(found.gpus), len(found.nics)) == (gpus, nics)
    assert len(found.pairs) == gpus * (gpus - 1) // 2
    assert {pair.nvlinks for pair in found.pairs} == nvlinks
    assert [gpu.numa for gpu in found.gpus] == numa
    assert [gpu.memory_numa for gpu in found.gpus] == memory_numa
    assert [nic.name for nic in found.nics] == [f"mlx5_{index}" for index in range(nics)]


def test_the_rows_of_every_matrix_are_looked_at() -> None:
    assert len(MATRICES) == 6


def test_old_drivers_name_network_devices_in_the_heading_and_have_fewer_columns() -> None:
    found = read_matrix(
        "\tGPU0\tmlx5_0\tmlx5_10\tCPU Affinity\n"
        "GPU0\t X \tPIX\tSOC\t0-7\n"
        "mlx5_0\tPIX\t X \tSOC\n"
        "mlx5_10\tSOC\tSOC\t X \n"
    )
    assert [nic.name for nic in found.nics] == ["mlx5_0", "mlx5_10"]
    assert [near.ancestor for near in found.nearness] == ["single", "system"]
    assert found.gpus[0].numa is None


@pytest.mark.parametrize(
    "changed",
    [
        "$ nvidia-smi topo -m\n" + SMALL,
        "\x1b[4m" + SMALL.replace("GPU NUMA ID", "GPU NUMA ID\x1b[0m"),
        "\x1b[4m\t" + SMALL.lstrip("\t"),
        SMALL.replace("\t", "   "),
        SMALL.replace("\n", "\r\n"),
        SMALL.replace(" X \n", " X \t\n"),
        SMALL.partition("Legend:")[0] + SMALL.partition("NIC Legend:")[2],
    ],
)
def test_how_it_was_pasted_makes_no_difference(changed: str) -> None:
    assert read_matrix(changed) == read_matrix(SMALL)


@pytest.mark.parametrize("name", MATRICES)
def test_cut_off_after_any_line_it_is_read_right_or_refused(name: str) -> None:
    whole, truth = text(name), machine(name)
    lines = whole.splitlines(keepends=True)
    ends = [place for place, line in enumerate(lines) if re.match(r"(GPU|NIC)\d", line)][-1] + 1
    for kept in range(len(lines)):
        cut = "".join(lines[:kept])
        if kept < ends:
            with pytest.raises(RecordError):
                read_matrix(cut)
        else:
            # Names of network devices come last.
            assert plain(read_matrix(cut)) == plain(truth)


@pytest.mark.parametrize("name", ["gb200-tray.txt", "hgx-h100.txt"])
def test_cut_off_at_any_character_it_is_read_right_or_refused(name: str) -> None:
    whole, truth = text(name), machine(name)
    end = whole.index("\nLegend:")
    for kept in range(0, end, 3):
        try:
            found = read_matrix(whole[:kept])
        except RecordError:
            continue
        assert plain(found) == plain(truth)


def plain(found: Machine) -> tuple[object, ...]:
    return found.gpus, found.pairs, [(near.gpu, near.ancestor) for near in found.nearness]


@pytest.mark.parametrize("name", MATRICES)
def test_without_any_one_line_it_is_refused_or_right(name: str) -> None:
    lines, truth = text(name).splitlines(keepends=True), topology(machine(name))
    for left_out in range(len(lines)):
        try:
            graph = topology(read_matrix("".join(lines[:left_out] + lines[left_out + 1 :])))
        except (RecordError, TopologyError):
            continue
        assert nameless(wrong(graph, truth)) == []


def nameless(claims: list[str]) -> list[str]:
    """Return the claims that are not about a network device, whose name may be what was lost."""
    return [claim for claim in claims if "nic:" not in claim]


@pytest.mark.parametrize("name", MATRICES)
def test_without_any_one_column_it_is_refused_or_right(name: str) -> None:
    whole = text(name)
    truth = topology(machine(name))
    rows = [line for line in whole.splitlines() if re.match(r"(GPU|NIC)\d|\s+GPU0|\x1b\[4m", line)]
    width = len(rows[1].split()) - 1
    for left_out in range(1, width):
        kept = [" ".join(cut_column(row, left_out, is_heading=place == 0)) for place, row in enumerate(rows)]
        try:
            graph = topology(read_matrix("\n".join(kept) + "\n"))
        except (RecordError, TopologyError):
            continue
        assert nameless(wrong(graph, truth)) == []


def cut_column(row: str, left_out: int, is_heading: bool) -> list[str]:
    words = re.findall(r"CPU Affinity|NUMA Affinity|GPU NUMA ID|[^\s\x1b]+", re.sub(r"\x1b\[\d*m", "", row))
    if is_heading:
        words = ["", *words]
    return words[:left_out] + words[left_out + 1 :]


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "nothing": (lambda _: "", "no line begins with GPU0"),
    "another command": (lambda _: "NVIDIA-SMI has failed because it couldn't", "no line begins with GPU0"),
    "a page of the web": (lambda _: "<html><body>502</body></html>\n", "no line begins with GPU0"),
    "bytes": (lambda _: "\x00\x01\ufffd" * 50, "no line begins with GPU0"),
    "no heading": (lambda s: "".join(s.splitlines(keepends=True)[1:]), "'X' is no name of a device"),
    "an unknown word": (lambda s: s.replace("PHB", "C2C"), "'C2C', which is no word for a link that is known"),
    "words run together": (lambda s: s.replace("PHB\tPIX", "PHBPIX"), "the row of GPU0 has 5 values, where"),
    "peer access": (lambda s: s.replace("PHB", "OK"), "'OK', which is no word for a link that is known"),
    "too many links": (lambda s: s.replace("PHB", "NV37"), "NVLinks join GPUs, 1 to 36 of them"),
    "no links": (lambda s: s.replace("PHB", "NV0"), "NVLinks join GPUs, 1 to 36 of them"),
    "links to a network device": (lambda s: s.replace("PIX", "NV4"), "NVLinks join GPUs, 1 to 36 of them"),
    "one way only": (lambda s: s.replace("PHB", "NV4", 1), "GPU0 to GPU1 is NV4, and GPU1 to GPU0 is PHB"),
    "not itself": (lambda s: s.replace(" X ", "PIX", 1), "X is where a device meets itself"),
    "two selves": (lambda s: s.replace("PHB", "X", 1), "X is where a device meets itself"),
    "rows in another order": (
        lambda s: s.replace("GPU0\t X", "GPU9\t X"),
        "it is the row of 'GPU9', where that of GPU0 should be",
    ),
    "a GPU that is missing": (lambda s: s.replace("GPU1", "GPU2"), "not with GPU0, GPU1, ..."),
    "columns that are there twice": (lambda s: s.replace("NIC0\tCPU", "NIC0\tNIC0\tCPU"), "two columns have one name"),
    "columns in another order": (
        lambda s: s.replace("NUMA Affinity\tGPU NUMA ID", "GPU NUMA ID\tNUMA Affinity"),
        "those of affinity come last, in one order",
    ),
    "a unit": (lambda s: s.replace("0-7", "0-7GB"), "the CPU Affinity of GPU0 is '0-7GB', which is no list of numbers"),
    "hexadecimal": (lambda s: s.replace("0-7", "0x0f"), "the CPU Affinity of GPU0 is '0x0f', which is no list"),
    "a range backwards": (lambda s: s.replace("0-7", "7-0"), "whose numbers do not rise"),
    "a huge number": (lambda s: s.replace("0-7", "0-99999999999"), "whose numbers do not rise to less than 4096"),
    "a list of own nodes": (lambda s: s.replace("N/A", "2,3"), "the GPU NUMA ID of GPU0 is '2,3', not one number"),
    "affinity cut": (lambda s: s.replace("0\t\tN/A\nGPU1", "0\nGPU1"), "the row of GPU0 has 5 values"),
    "a row without its end": (lambda s: s[: s.index(" X\n\nLegend") + 2], "it does not end: the output was cut off"),
    "two names for one": (lambda s: s.replace("NIC0: mlx5_0", "NIC0: mlx5_0\n  NIC0: mlx5_0 mlx5_1"), ""),
}  # fmt: skip
"""What is done to a matrix, and what is said of it; nothing where it does no harm."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_of_by_the_line_and_what_is_wrong(kind: str) -> None:
    damage, told = DAMAGE[kind]
    damaged = damage(SMALL)
    assert damaged != SMALL
    if told:
        with pytest.raises(RecordError, match=re.escape(told)):
            read_matrix(damaged)
    else:
        assert read_matrix(damaged) == read_matrix(SMALL)


def test_two_network_devices_of_one_name_are_refused() -> None:
    matrix = "\tGPU0\tNIC0\tNIC1\nGPU0\t X \tPIX\tPIX\nNIC0\tPIX\t X \tPIX\nNIC1\tPIX\tPIX\t X \n"
    with pytest.raises(RecordError, match="two network devices have one name"):
        read_matrix(matrix + "NIC0: mlx5_0\nNIC1: mlx5_0\n")


def test_a_file_that_cannot_be_read_is_told_of_by_its_name(tmp_path: Path) -> None:
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b"\xff\xfe\x00")
    for path, told in (
        (tmp_path / "nowhere.txt", "FileNotFoundError"),
        (tmp_path, "IsADirectoryError"),
        (odd, "Unicode"),
    ):
        with pytest.raises(RecordError, match=f"{re.escape(str(path))} cannot be read: {told}"):
            read_machine(path)


@pytest.mark.parametrize("name", ["dgx-a100", "hgx-h100", "gb200-tray", "a100-pcie-bridges"])
def test_nvml_and_the_matrix_of_one_machine_agree(name: str) -> None:
    assert disagreements(machine(f"{name}.json"), machine(f"{name}.txt")) == ()


def test_where_nvml_and_the_matrix_disagree_both_are_told() -> None:
    fewer = text("dgx-a100.txt").replace("NV12", "NV10")
    differences = disagreements(machine("dgx-a100.json"), read_matrix(fewer))
    assert len(differences) == 28
    source = machine("dgx-a100.json").source
    assert differences[0] == (f"GPUs 0 and 1: their number of NVLinks is 12 by {source} and 10 by nvidia-smi topo -m")
    moved = read_matrix(text("a100-pcie-bridges.txt").replace("0-31,64-95      0", "0-31,64-95      3"))
    assert any(
        "numa is 0 by" in each and "and 3 by" in each
        for each in disagreements(machine("a100-pcie-bridges.json"), moved)
    )
    [count] = disagreements(machine("dgx-a100.json"), machine("gb200-tray.txt"))
    assert "has 8 GPUs, nvidia-smi topo -m 4" in count


def test_what_only_the_matrix_says_completes_what_nvml_says() -> None:
    found = completed(machine("no-device.json"), machine("no-device.json"))
    assert found.gpus == ()
    whole = completed(machine("dgx-a100.json"), machine("dgx-a100.txt"))
    assert [pair.nvlinks for pair in whole.pairs] == [12] * 28
    assert topology(whole).links == topology(machine("dgx-a100.json")).links


def command(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_command_is_run_and_its_output_read(tmp_path: Path) -> None:
    found = matrix_of_this_host(command(tmp_path, f'[ "$*" = "topo -m" ] && cat {FOLDER / "hgx-h100.txt"}'))
    assert found == machine("hgx-h100.txt")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'no devices were found'; exit 6", "failed with status 6: no devices were found"),
        ("echo 'Failed to initialize NVML' >&2; exit 9", "failed with status 9: Failed to initialize NVML"),
        ("exit 0", "no line begins with GPU0"),
        (f"head -c 300 {FOLDER / 'gb200-tray.txt'}", "nvidia-smi topo -m"),
        ("printf '\\377\\376'", "no line begins with GPU0"),
        ("kill -9 $$", "failed with status -9"),
    ],
)
def test_a_command_that_fails_is_told_of(script: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=re.escape(told)):
        matrix_of_this_host(command(tmp_path, script))


def test_a_command_that_is_not_there_or_does_not_end_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot be run: .*No such file"):
        matrix_of_this_host(str(tmp_path / "nowhere"))
    with pytest.raises(RecordError, match=r"cannot be run: .*timed out"):
        matrix_of_this_host(command(tmp_path, "exec sleep 60"), seconds=0.2)
