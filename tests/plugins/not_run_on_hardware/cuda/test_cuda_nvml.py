"""What is collected from NVML, which nothing here has: a stand-in for it speaks for each recorded machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from cuda_claims import wrong
from cuda_machines import RECORDS, machine, write_sysfs
from cuda_stand_in import StandIn

from devices.errors import TopologyError
from devices_cuda import nvml
from devices_cuda.graph import topology
from devices_cuda.machine import CLIQUE_TYPES, Clique, Fabric, Machine
from devices_cuda.nvml import collect
from devices_cuda.presence import AbsentError
from devices_cuda.presence import machine as ask
from devices_cuda.record import RecordError
from devices_cuda.sysfs import Sysfs


@pytest.fixture(autouse=True)
def no_files_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "Sysfs", lambda: Sysfs(Path("/nowhere")))


def opened(stand_in: StandIn) -> StandIn:
    stand_in.nvmlInit()
    return stand_in


def plain(found: Machine) -> Machine:
    return replace(found, source="", unanswered=())


@pytest.mark.parametrize("name", RECORDS)
def test_what_the_driver_says_becomes_the_machine_that_it_speaks_for(name: str, tmp_path: Path) -> None:
    truth = machine(name)
    write_sysfs(tmp_path, truth)
    assert plain(collect(opened(StandIn(truth)), Sysfs(tmp_path))) == plain(truth)


def test_without_links_it_is_asked_for_no_more_than_what_a_device_is(tmp_path: Path) -> None:
    stand_in = opened(StandIn(machine("hgx-h100.json")))
    found = collect(stand_in, Sysfs(tmp_path), links=False)
    assert [(gpu.name, gpu.memory, gpu.capability) for gpu in found.gpus] == [
        ("NVIDIA H100 80GB HBM3", 85520809984, (9, 0))
    ] * 8
    assert not [asked for asked in stand_in.asked if "Link" in asked or "Topology" in asked or "P2P" in asked]


def test_numa_nodes_are_asked_of_nvml_where_the_kernel_does_not_say(tmp_path: Path) -> None:
    truth = machine("gb200-tray.json")
    found = collect(opened(StandIn(truth)), Sysfs(tmp_path))
    # The nodes of the GPUs' own memory are in NVML's set too.
    assert [(gpu.numa, gpu.memory_numa) for gpu in found.gpus] == [(0, 2), (0, 10), (1, 18), (1, 26)]


@pytest.mark.parametrize("version", [4, 3, 2, 1])
def test_a_domain_is_read_by_the_newest_structure_that_the_driver_knows(version: int, tmp_path: Path) -> None:
    truth = machine("gb200-tray.json")
    cluster = "0123456789abcdef" * 2
    found = collect(opened(StandIn(truth, fabric=version)), Sysfs(tmp_path))
    for gpu in found.gpus:
        assert gpu.fabric is not None
        assert (gpu.fabric.state, gpu.fabric.cluster, gpu.fabric.status) == ("completed", cluster, 0)
        assert gpu.fabric.health == ("healthy" if version >= 3 else None)
        assert gpu.fabric.domain == f"{cluster}.7"
        assert len(gpu.fabric.cliques) == (3 if version == 4 else 1)


def test_an_older_nvidia_ml_py_has_fewer_structures_and_reads_the_domain_all_the_same(tmp_path: Path) -> None:
    names = ("nvmlDeviceGetGpuFabricInfo_v4", "nvmlDeviceGetGpuFabricInfoV")
    found = collect(opened(StandIn(machine("gb200-tray.json"), unknown=names)), Sysfs(tmp_path))
    assert {gpu.fabric.domain for gpu in found.gpus if gpu.fabric} == {"0123456789abcdef" * 2 + ".7"}


def test_a_driver_that_knows_no_domains_says_why(tmp_path: Path) -> None:
    found = collect(opened(StandIn(machine("gb200-tray.json"), fabric=0)), Sysfs(tmp_path))
    assert [gpu.fabric for gpu in found.gpus] == [None] * 4
    assert [line for line in found.unanswered if "FabricInfo" in line] == [
        f"GPU {index}: nvmlDeviceGetGpuFabricInfo: Function Not Found" for index in range(4)
    ]


def test_the_clique_that_counts_is_the_first_of_pointers() -> None:
    endpoint, pointer = Clique(CLIQUE_TYPES[2], 4), Clique(CLIQUE_TYPES[0], 5)
    assert Fabric("completed", "ab" * 16, (endpoint, pointer)).domain == f"{'ab' * 16}.5"
    assert Fabric("completed", "ab" * 16, (endpoint,)).domain is None


@pytest.mark.parametrize(
    "fabric",
    [
        Fabric("in progress", "ab" * 16, (Clique(CLIQUE_TYPES[0], 1),)),
        Fabric("not started"),
        Fabric("not supported"),
        Fabric("completed", "ab" * 16, (Clique(CLIQUE_TYPES[0], 1),), status=999),
        Fabric("completed", None, (Clique(CLIQUE_TYPES[0], 1),)),
    ],
    ids=str,
)
def test_only_who_has_joined_is_in_a_domain(fabric: Fabric) -> None:
    assert fabric.domain is None


def test_nvlink_versions_are_not_nvmls_codes_for_them(tmp_path: Path) -> None:
    # 6 is version 4.0, 7 is 5.0: a code that is taken for a version is three generations off.
    for name, version in (("dgx-a100.json", "3.0"), ("hgx-h100.json", "4.0"), ("gb200-tray.json", "5.0")):
        found = collect(opened(StandIn(machine(name))), Sysfs(tmp_path))
        assert {link.version for gpu in found.gpus for link in gpu.nvlinks or ()} == {version}


def test_a_version_of_the_future_is_unknown(tmp_path: Path) -> None:
    stand_in = StandIn(machine("hgx-h100.json"), says={"nvmlDeviceGetNvLinkVersion": 9})
    found = collect(opened(stand_in), Sysfs(tmp_path))
    assert {link.version for gpu in found.gpus for link in gpu.nvlinks or ()} == {None}
    assert {link.bandwidth for link in topology(found).links if link.kind == "nvlink"} == {None}


ASKED = sorted({
    function
    for name in ("gb200-tray.json", "a100-pcie-bridges.json", "mig.json")
    for stand_in in [opened(StandIn(machine(name)))]
    for _ in [collect(stand_in, Sysfs(Path("/nowhere")))]
    for function in stand_in.asked
    if function != "nvmlInit"
})  # fmt: skip

FAULTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "the driver is too old": lambda name: {"lacks": (name,)},
    "nvidia-ml-py is too old": lambda name: {"unknown": (name,)},
    "not supported": lambda name: {"errors": {name: pynvml.NVML_ERROR_NOT_SUPPORTED}},
    "not permitted": lambda name: {"errors": {name: pynvml.NVML_ERROR_NO_PERMISSION}},
    "lost": lambda name: {"errors": {name: pynvml.NVML_ERROR_GPU_IS_LOST}},
    "unknown error": lambda name: {"errors": {name: pynvml.NVML_ERROR_UNKNOWN}},
    "a code of the future": lambda name: {"errors": {name: 77}},
    "no UTF-8": lambda name: {"errors": {name: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")}},
    "nothing": lambda name: {"says": {name: None}},
    "a text": lambda name: {"says": {name: "[Unknown Error]"}},
    "minus one": lambda name: {"says": {name: -1}},
    "not available": lambda name: {"says": {name: 2**64 - 1}},
    "an empty list": lambda name: {"says": {name: []}},
    "a truth": lambda name: {"says": {name: True}},
    "bytes": lambda name: {"says": {name: b"\xff"}},
    "a list of fractions": lambda name: {"says": {name: [1.5]}},
}
"""What goes wrong with one function of NVML."""


@pytest.mark.parametrize("function", ASKED)
def test_a_call_that_fails_leaves_something_unknown_and_makes_nothing_up(function: str) -> None:
    for name in ("gb200-tray.json", "mig.json" if "Mig" in function else "a100-pcie-bridges.json"):
        truth = topology(machine(name))
        for fault, with_fault in FAULTS.items():
            try:
                graph = topology(ask(StandIn(machine(name), **with_fault(function))))
            except (AbsentError, RecordError, TopologyError):
                # A reason, and no machine.
                continue
            assert (fault, wrong(graph, truth)) == (fault, [])
            assert len(graph.devices) <= len(truth.devices)


def test_what_was_not_answered_is_told_with_who_and_why(tmp_path: Path) -> None:
    errors: dict[str, int | Exception] = {"nvmlDeviceGetNvLinkVersion": pynvml.NVML_ERROR_UNKNOWN}
    found = collect(opened(StandIn(machine("a100-pcie-bridges.json"), errors=errors)), Sysfs(tmp_path))
    assert "GPU 0, NVLink 11: nvmlDeviceGetNvLinkVersion: Unknown Error" in found.unanswered


def test_what_a_gpu_has_not_is_no_news(tmp_path: Path) -> None:
    truth = machine("a100-pcie-bridges.json")
    write_sysfs(tmp_path, truth)
    assert collect(opened(StandIn(truth)), Sysfs(tmp_path)).unanswered == ()


def test_nvml_is_shut_down_whatever_happens() -> None:
    for errors in ({}, {"nvmlDeviceGetCount": pynvml.NVML_ERROR_UNKNOWN}, {"nvmlDeviceGetName": ValueError("odd")}):
        stand_in = StandIn(machine("hgx-h100.json"), errors=errors)
        with contextlib.suppress(AbsentError):
            ask(stand_in)
        assert stand_in.open == 0
        assert stand_in.asked[-1] == "nvmlShutdown"


def test_unreadable_files_of_the_kernel_leave_places_unknown(tmp_path: Path) -> None:
    truth = machine("hgx-h100.json")
    write_sysfs(tmp_path, truth)
    (tmp_path / "bus/pci/devices/0000:1b:00.0").unlink()
    node = (tmp_path / "bus/pci/devices/0000:43:00.0").resolve() / "numa_node"
    node.unlink()
    node.mkdir()  # what is read from it is an error, for root too
    (tmp_path / "bus/pci/devices/0000:52:00.0").resolve().joinpath("numa_node").write_bytes(b"\xff\n")
    (tmp_path / "bus/pci/devices/0000:61:00.0").resolve().joinpath("numa_node").write_text("-1\n")
    (tmp_path / "class/infiniband/mlx5_7/device").unlink()
    (tmp_path / "class/infiniband/mlx5_7/device").symlink_to("mlx5_7")  # a loop
    files = Sysfs(tmp_path)
    assert files.place("0000:1b:00.0") == (None, None)
    assert files.place("0000:43:00.0") == (truth.gpus[1].path, None)
    assert files.place("0000:52:00.0") == (truth.gpus[2].path, None)
    assert files.place("0000:61:00.0") == (truth.gpus[3].path, None)
    assert [nic.name for nic in files.nics()] == ["ibmlx5_7", *(f"mlx5_{index}" for index in range(7))]
    told = " ".join(files.unanswered)
    assert "0000:1b:00.0: FileNotFoundError" in told
    assert "0000:43:00.0: IsADirectoryError" in told
    assert "0000:52:00.0: UnicodeDecodeError" in told
    assert "mlx5_7: " in told


def test_a_host_without_the_kernels_files_has_no_network_devices(tmp_path: Path) -> None:
    files = Sysfs(tmp_path / "nowhere")
    assert files.nics() == ()
    assert files.unanswered == []
