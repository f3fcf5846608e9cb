"""The backend over a stand-in for NVML: what a program sees of a machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_machines import FOLDER, RECORDS, machine, text
from cuda_stand_in import StandIn

import devices
from devices import _registry
from devices._open import my_device
from devices.errors import BackendUnavailableError, TopologyError
from devices.testing.conformance import hosts
from devices_cuda import CudaBackend, misfits, nvml, presence
from devices_cuda.__main__ import main
from devices_cuda.abilities import capabilities_of, dtypes_of
from devices_cuda.built_with import TorchBuild
from devices_cuda.record import from_json
from devices_cuda.sysfs import Sysfs


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Let this host have a driver, once a test has said for which machine, and a torch that was built with CUDA."""
    monkeypatch.setattr(nvml, "Sysfs", lambda: Sysfs(tmp_path / "sys"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(presence, "torch_build", lambda: TorchBuild("2.13.0+cu128", "12.8"))
    presence.host.cache_clear()
    yield monkeypatch
    presence.host.cache_clear()


def put(host: pytest.MonkeyPatch, name: str) -> StandIn:
    stand_in = StandIn(machine(name))
    host.setitem(sys.modules, "pynvml", stand_in)
    return stand_in


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in ("no-device.json", "half-broken.json")])
def test_a_backend_that_is_present_lists_devices_with_capabilities_and_a_graph(
    name: str, host: pytest.MonkeyPatch
) -> None:
    put(host, name)
    backend = CudaBackend()
    assert backend.probe().present
    found = backend.devices()
    assert [str(device) for device in found] == [f"cuda:{index}" for index in range(len(found))]
    for device in found:
        assert backend.capabilities(device) == backend.capabilities(device)
        assert torch.float32 in backend.capabilities(device).dtypes
    graph = backend.topology()
    assert graph is not None
    assert [node.name for node in graph.devices] == [str(device) for device in found]


@pytest.mark.parametrize("law", [
    hosts.attributes_are_plain, hosts.probe_says_why, hosts.probe_is_repeatable, hosts.devices_are_listed_alike,
    hosts.devices_are_the_backends, hosts.devices_are_in_order, hosts.devices_have_memory, hosts.capabilities_are_equal,
    hosts.reductions_have_a_meaning, hosts.limits_are_numbers, hosts.links_lead_to_devices,
], ids=lambda law: law.__name__)  # fmt: skip
@pytest.mark.parametrize("name", RECORDS)
def test_the_kits_laws_of_a_host_hold_on_every_machine(
    name: str, law: Callable[[devices.Backend], None], host: pytest.MonkeyPatch
) -> None:
    put(host, name)
    law(CudaBackend())


def test_links_say_what_each_gpu_reaches_and_how_fast(host: pytest.MonkeyPatch) -> None:
    put(host, "hgx-h100.json")
    backend = CudaBackend()
    first = backend.capabilities(backend.devices()[0])
    assert first.links == tuple(devices.Link(f"cuda:{peer}", "nvlink", 450e9) for peer in range(1, 8))


def test_gpus_without_nvlinks_between_them_have_links_over_pci_if_they_reach_each_other(
    host: pytest.MonkeyPatch,
) -> None:
    put(host, "a100-pcie-bridges.json")
    backend = CudaBackend()
    links = {link.peer: (link.kind, link.bandwidth) for link in backend.capabilities(backend.devices()[0]).links}
    assert links.pop("cuda:1") == ("nvlink", 300e9)
    assert links == {f"cuda:{peer}": ("pcie", None) for peer in range(2, 8)}


def test_a_device_that_is_not_there_has_no_capabilities(host: pytest.MonkeyPatch) -> None:
    put(host, "gb200-tray.json")
    with pytest.raises(BackendUnavailableError, match="there is no cuda:4: this process sees 4 GPUs"):
        CudaBackend().capabilities(devices.Device("cuda", "cuda", 4))


def test_memory_is_asked_anew_and_the_rest_once(host: pytest.MonkeyPatch) -> None:
    stand_in = put(host, "gb200-tray.json")
    backend = CudaBackend()
    found = backend.devices()
    backend.capabilities(found[0])
    before = stand_in.asked.count("nvmlDeviceGetNvLinkState")
    assert before > 0
    for device in found:
        backend.capabilities(device)
    assert stand_in.asked.count("nvmlDeviceGetNvLinkState") == before
    asked = stand_in.asked.count("nvmlDeviceGetMemoryInfo")
    backend.devices()
    assert stand_in.asked.count("nvmlDeviceGetMemoryInfo") == asked + 4


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [
        ((7, 0), (), ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")),
        ((7, 5), (), ("bfloat16", "float8_e4m3fn")),
        ((8, 0), ("bfloat16",), ("float8_e4m3fn", "float8_e5m2")),
        ((8, 6), ("bfloat16",), ("float8_e4m3fn",)),
        ((8, 9), ("bfloat16", "float8_e4m3fn", "float8_e5m2"), ("float8_e8m0fnu",)),
        ((9, 0), ("bfloat16", "float8_e4m3fn", "float8_e5m2"), ("float8_e8m0fnu",)),
        ((10, 0), ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"), ()),
        ((12, 0), ("bfloat16", "float8_e4m3fn", "float8_e8m0fnu"), ()),
        (None, (), ("bfloat16", "float8_e4m3fn")),
    ],
)
def test_the_dtypes_are_those_of_the_generation(
    capability: tuple[int, int] | None, has: tuple[str, ...], lacks: tuple[str, ...]
) -> None:
    names = set(dtypes_of(capability))
    assert {"float32", "float16", "float64", "int64", "uint8", "bool", "complex64", *has} <= names
    assert not names & {*lacks, "float8_e4m3fnuz", "float8_e5m2fnuz"}


def test_reductions_are_nccls_and_none_is_bitwise_or_of_a_dtype_that_the_gpu_lacks() -> None:
    new, old = capabilities_of((9, 0)), capabilities_of((7, 0))
    assert set(new.reductions) == {"sum", "prod", "min", "max", "avg"}
    assert torch.bfloat16 in new.reductions["sum"]
    assert not any(torch.bfloat16 in some for some in old.reductions.values())
    assert torch.int64 not in new.reductions["avg"]
    for abilities in (new, old):
        assert all(some <= abilities.dtypes for some in abilities.reductions.values())


def test_the_gpu_with_most_free_memory_is_picked_anew_at_each_call(host: pytest.MonkeyPatch) -> None:
    free = [10 << 30] * 8
    reading = iter(range(1 << 20))

    def memory(truth: Any) -> Any:
        # NVML is asked for one GPU after the other.
        truth.free = free[next(reading) % 8]
        return truth

    stand_in = StandIn(machine("dgx-a100.json"), says={"nvmlDeviceGetMemoryInfo": memory})
    host.setitem(sys.modules, "pynvml", stand_in)
    for name in ("LOCAL_RANK", "RANK"):
        host.delenv(name, raising=False)
    _registry.reset()
    try:
        free[5] = 60 << 30
        assert devices.device(memory="50 GiB", dtype=torch.bfloat16, backend="cuda") == torch.device("cuda", 5)
        assert my_device(CudaBackend(), is_alone=True).index == 5
        free[2], free[5] = 70 << 30, 0
        assert devices.device(memory="50 GiB", backend="cuda") == torch.device("cuda", 2)
        with pytest.raises(
            BackendUnavailableError, match=r"no device has 71 GiB free:(\n  cuda:\d: \d+.0 GiB free){8}$"
        ):
            devices.device(memory="71 GiB", backend="cuda")
        with pytest.raises(BackendUnavailableError, match=r"cuda:7: has no torch.float8_e4m3fn"):
            devices.device(dtype=torch.float8_e4m3fn, backend="cuda")
    finally:
        _registry.reset()


def script(folder: Path, shown: Path) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done < {shown}\n")
    path.chmod(0o755)
    return str(folder)


def test_nvidia_smi_is_the_second_source_and_where_they_agree_nothing_is_said(
    host: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(host, "dgx-a100.json")
    alone = CudaBackend().topology()
    host.setenv("PATH", script(tmp_path, FOLDER / "dgx-a100.txt"))
    assert CudaBackend().topology() == alone


def test_where_nvidia_smi_contradicts_nvml_a_warning_says_so(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(host, "dgx-a100.json")
    alone = CudaBackend().topology()
    (tmp_path / "other.txt").write_text(text("dgx-a100.txt").replace("NV12", "NV10"))
    host.setenv("PATH", script(tmp_path, tmp_path / "other.txt"))
    with pytest.warns(RuntimeWarning, match="GPUs 0 and 1: their number of NVLinks is 12 by NVML and 10 by nvidia-smi"):
        assert CudaBackend().topology() == alone


def test_the_doctor_is_told_of_what_does_not_fit(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host.setattr(misfits, "_SECONDS", 60.0)
    assert CudaBackend().contradictions() == ()
    put(host, "dgx-a100.json")
    assert CudaBackend().contradictions() == ()
    (tmp_path / "other.txt").write_text(text("dgx-a100.txt").replace("NV12", "NV10"))
    host.setenv("PATH", script(tmp_path, tmp_path / "other.txt"))
    host.setenv("CUDA_VISIBLE_DEVICES", "0,1,8")
    ended, *differences = CudaBackend().contradictions()
    assert ended == "cuda: CUDA_VISIBLE_DEVICES=0,1,8: '8' is none of 0 to 7, and ends the list"
    assert len(differences) == 28
    assert differences[0] == "cuda: GPUs 0 and 1: their number of NVLinks is 12 by NVML and 10 by nvidia-smi topo -m"


def test_a_machine_whose_links_contradict_each_other_has_devices_and_no_links(host: pytest.MonkeyPatch) -> None:
    whole = machine("a100-pcie-bridges.json")
    torn = replace(whole, gpus=(replace(whole.gpus[0], nvlinks=(whole.gpus[0].nvlinks or ())[:5]), *whole.gpus[1:]))
    host.setitem(sys.modules, "pynvml", StandIn(torn))
    backend = CudaBackend()
    assert len(backend.devices()) == 8
    assert backend.capabilities(backend.devices()[0]).links == ()
    [told] = backend.contradictions()
    assert "GPU 0 has 5 NVLinks to GPU 1, which has 12 back to it" in told
    with pytest.raises(TopologyError):
        backend.topology()


def test_the_command_writes_down_this_machine(host: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put(host, "gb200-tray.json")
    assert main([]) == 0
    assert from_json(capsys.readouterr().out) == presence.host()


@pytest.mark.parametrize("name", ["dgx-a100.json", "gb200-tray.txt"])
def test_the_command_shows_what_a_file_describes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER / name)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "device cuda:0" in lines
    told = "cuda:0 -> nvswitch over nvlink"
    assert (f"{told}, 300 GB/s" if name == "dgx-a100.json" else told) in lines


def test_the_command_gives_the_reason_of_a_file_that_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.json").write_text(text("dgx-a100.json")[:500])
    assert main([str(tmp_path / "cut.json")]) == 1
    assert f"devices_cuda: {tmp_path / 'cut.json'}: a machine's record is no JSON" in capsys.readouterr().err
