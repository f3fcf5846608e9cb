"""Whether there is a GPU to use, and the reason where there is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from cuda_machines import machine
from cuda_stand_in import StandIn

import devices as library
from devices_cuda import CudaBackend, presence
from devices_cuda.built_with import TorchBuild, read_version_file, torch_build
from devices_cuda.machine import Machine
from devices_cuda.presence import devices, probe

WITH_CUDA = TorchBuild("2.13.0+cu128", "12.8")


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def reason(stand_in: StandIn, build: TorchBuild = WITH_CUDA) -> str:
    found = probe(stand_in, build)
    assert not found.present
    assert devices(stand_in, build) == ()
    return found.reason


def driver_is_here() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.skipif(driver_is_here(), reason="needs a host without an NVIDIA driver, found one")
def test_on_this_host_the_reason_is_that_there_is_no_driver() -> None:
    found = CudaBackend().probe()
    assert not found.present
    assert found.reason == "no NVIDIA driver: libnvidia-ml.so.1 is not found"
    assert CudaBackend().devices() == ()
    assert CudaBackend().topology() is None


def test_without_the_extra_the_reason_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(presence, "_LOADED", tmp_path / "nowhere")
    told = "nvidia-ml-py, which finds GPUs, is not installed: pip install 'devices[cuda]'"
    assert CudaBackend().probe().reason == told
    monkeypatch.setattr(presence, "_LOADED", tmp_path)
    assert CudaBackend().probe().reason == f"an NVIDIA driver is loaded, but {told}"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver: libnvidia-ml.so.1 is not found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "its kernel module is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "library and its kernel module are of different versions"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "the device files /dev/nvidia* are not this user's to open"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML cannot be initialized: Unknown Error"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "NVML cannot be initialized: Function Not Found"),
        (77, "NVML cannot be initialized"),
        (OSError("no such symbol"), "NVML cannot be initialized: OSError: no such symbol"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_told_of(code: int | Exception, told: str) -> None:
    assert told in reason(StandIn(machine("hgx-h100.json"), errors={"nvmlInit": code}))


def test_a_driver_without_a_gpu() -> None:
    assert reason(StandIn(machine("no-device.json"))) == "the NVIDIA driver 550.54.15 is loaded, but sees no GPU"


def test_a_torch_that_was_built_without_cuda() -> None:
    told = reason(StandIn(machine("hgx-h100.json")), TorchBuild("2.13.0+cpu", None))
    assert told.startswith("8 GPUs are here, but this torch (2.13.0+cpu) was built without CUDA")


@pytest.mark.parametrize(
    ("built", "served", "is_enough"),
    [
        ("12.8", (12, 4), True),  # within one major version any driver serves
        ("12.8", (13, 0), True),
        ("12.8", (11, 8), False),
        ("13.0", (12, 9), False),
        ("13.0", None, True),  # a driver that does not say is tried
    ],
)
def test_a_driver_is_too_old_for_a_torch_of_a_later_major_cuda(
    built: str, served: tuple[int, int] | None, is_enough: bool
) -> None:
    found = probe(StandIn(replace(machine("hgx-h100.json"), cuda=served)), TorchBuild("2.13.0", built))
    assert found.present is is_enough
    if not is_enough:
        assert served is not None
        assert f"driver 550.54.15 serves CUDA {served[0]}.{served[1]} at most" in found.reason
        assert f"built with {built}: install a newer driver, or a torch for CUDA {served[0]}" in found.reason


def test_a_setting_that_hides_all_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert reason(StandIn(machine("hgx-h100.json"))) == "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs (8 here)"


def test_the_devices_are_those_that_the_setting_leaves_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = machine("hgx-h100.json")
    other = replace(truth, gpus=(replace(truth.gpus[0], name="another"), *truth.gpus[1:]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,0")
    found = devices(StandIn(other), WITH_CUDA)
    assert [(str(device), device.type, device.name) for device in found] == [
        ("cuda:0", "cuda", "NVIDIA H100 80GB HBM3"),
        ("cuda:1", "cuda", "another"),
    ]
    assert [(device.memory, device.free) for device in found] == [(85520809984, 85018148864)] * 2
    told = probe(StandIn(other), WITH_CUDA).reason
    assert told.startswith("1 NVIDIA H100 80GB HBM3, 1 another; driver 550.54.15, CUDA 12.4")
    assert "CUDA_VISIBLE_DEVICES leaves 2 of 8" in told


def test_gpus_that_differ_may_be_numbered_otherwise_and_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = machine("hgx-h100.json")
    mixed = replace(truth, gpus=(replace(truth.gpus[0], name="another"), *truth.gpus[1:]))
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in probe(StandIn(mixed), WITH_CUDA).reason
    assert "CUDA_DEVICE_ORDER" not in probe(StandIn(truth), WITH_CUDA).reason
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert "CUDA_DEVICE_ORDER" not in probe(StandIn(mixed), WITH_CUDA).reason


def test_an_instance_is_a_device_with_its_own_share_of_memory() -> None:
    [device] = devices(StandIn(machine("mig.json")), WITH_CUDA)
    assert device.name == "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
    assert device.memory == 40 * 2**30 - 2**28
    told = probe(StandIn(machine("mig.json")), WITH_CUDA).reason
    assert told.startswith("1 NVIDIA A100-SXM4-80GB MIG 3g.40gb; driver 535.129.03, CUDA 12.2")
    assert "a process sees one MIG instance and nothing else" in told


def test_a_lost_gpu_is_named_and_how_to_do_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = machine("half-broken.json")
    told = reason(StandIn(truth))
    assert told.startswith("GPU 3: GPU is lost. Hide it, and the rest can be used: CUDA_VISIBLE_DEVICES=GPU-")
    rest = told.rpartition("=")[2]
    assert rest.split(",") == [gpu.uuid for gpu in truth.gpus if gpu.index != 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", rest)
    assert probe(StandIn(truth), WITH_CUDA).present
    assert [device.memory for device in devices(StandIn(truth), WITH_CUDA)] == [
        gpu.memory for gpu in truth.gpus if gpu.index != 3
    ]


@pytest.mark.parametrize("said", ["many", -1, 2**64 - 1, None, 1e9])
def test_a_number_of_gpus_that_cannot_be_is_a_reason(said: object) -> None:
    told = reason(StandIn(machine("hgx-h100.json"), says={"nvmlDeviceGetCount": said}))
    assert told == f"what NVML says cannot be: it says that there are {said!r} GPUs"


def test_a_probe_does_not_import_torch_and_makes_no_context() -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "cuda")]
    code = f"""
import sys
sys.path[:0] = {folders!r}
from cuda_machines import machine
from cuda_stand_in import StandIn
from devices_cuda.presence import devices, probe
stand_in = StandIn(machine("hgx-h100.json"))
probe(stand_in)
devices(stand_in)
assert not [name for name in sys.modules if name == "torch" or name.startswith("torch.")]
assert stand_in.open == 0
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "__version__ = '2.13.0+cu128'\ncuda: Optional[str] = '12.8'\nhip = None\n",
            TorchBuild("2.13.0+cu128", "12.8"),
        ),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", TorchBuild("2.13.0+cpu", None)),
        ("__version__ = '2.13.0'\ncuda = '13.0'\n", TorchBuild("2.13.0", "13.0")),
        ("__version__ = '2.13.0'\n", None),
        ("cuda = '13.0'\n", None),
        ("__version__ = '2.13.0'\ncuda = 12\n", None),
        ("__version__ = '2.13.0'\ncuda = '13", None),
        ("", None),
        ("\x00", None),
    ],
)
def test_how_torch_was_built_is_read_from_its_file(text: str, found: TorchBuild | None) -> None:
    assert read_version_file(text) == found


def test_how_the_torch_that_is_installed_was_built_is_found_with_and_without_importing_it() -> None:
    code = """
import sys
from devices_cuda.built_with import torch_build
print(torch_build())
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    import torch

    expected = TorchBuild(torch.__version__, torch.version.cuda)
    assert done.stdout == f"{expected}\n", done.stderr
    assert torch_build() == expected


def test_where_torch_does_not_say_how_it_was_built_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "torch_build", lambda: None)
    assert probe(StandIn(machine("hgx-h100.json"))).present


def test_the_plugin_says_that_it_has_not_run_on_hardware() -> None:
    assert "not run on hardware" in CudaBackend.verified
    assert CudaBackend.priority is not None
    assert CudaBackend.priority > 0
    assert "cuda" in library.backends()


def test_a_machine_that_contradicts_itself_is_no_machine() -> None:
    truth: Machine = machine("hgx-h100.json")
    twice = replace(truth, gpus=(truth.gpus[0], replace(truth.gpus[1], pci=truth.gpus[0].pci), *truth.gpus[2:]))
    assert reason(StandIn(twice)) == "what NVML says cannot be: this is no machine: two GPUs have one pci"
