"""Whether there are GPUs that this program may use, why not, and which."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices import Device, Probe
from devices_cuda.built_with import TorchBuild, torch_build
from devices_cuda.machine import Machine
from devices_cuda.nvml import collect
from devices_cuda.record import RecordError, checked
from devices_cuda.visibility import VARIABLE, Seen, Visible, visible

if TYPE_CHECKING:
    from devices.topology import Topology

_LOADED = Path("/proc/driver/nvidia/version")

# NVML's error codes, as in devices_cuda.nvml.
_REASONS = {
    4: "NVML may not be used here: the device files /dev/nvidia* are not this user's to open",
    9: "the NVIDIA driver is installed, but its kernel module is not loaded: `modprobe nvidia`, or boot into a kernel "
    "that it was built for",
    12: "no NVIDIA driver: libnvidia-ml.so.1 is not found",
    18: "the NVIDIA driver's library and its kernel module are of different versions, as after an upgrade: reboot, or "
    "load the new module",
}


class AbsentError(Exception):
    """There is no GPU that can be used; the text says why."""


def machine(nvml: Any = None, *, links: bool = True) -> Machine:
    """Return what NVML says of this host.

    Args:
        nvml: the module pynvml, or what has its functions; None to import it.
        links: whether to ask for what the GPUs hang on, too.

    Raises:
        AbsentError: there is no driver that answers, or what it says cannot be.
    """
    module = _pynvml() if nvml is None else nvml
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        code = getattr(error, "value", None)
        raise AbsentError(_REASONS.get(code, f"NVML cannot be initialized: {error}")) from error  # type: ignore[arg-type]
    except Exception as error:
        raise AbsentError(f"NVML cannot be initialized: {type(error).__name__}: {error}") from error
    try:
        return checked(collect(module, links=links))
    except module.NVMLError as error:
        raise AbsentError(f"NVML does not say how many GPUs there are: {error}") from error
    except RecordError as error:
        raise AbsentError(f"what NVML says cannot be: {error}") from error
    except Exception as error:
        # A driver may say anything; a probe raises nothing.
        raise AbsentError(f"NVML cannot be understood: {type(error).__name__}: {error}") from error
    finally:
        # It may have gone away by itself.
        with contextlib.suppress(module.NVMLError):
            module.nvmlShutdown()


def probe(nvml: Any = None, build: TorchBuild | None = None) -> Probe:
    """Return whether there is a GPU that this torch can use, and why not.

    Args:
        nvml: as `machine` takes it.
        build: how torch was built; None to look.
    """
    try:
        found = machine(nvml, links=False)
        seen = usable(found, build or torch_build())
    except AbsentError as reason:
        return Probe(present=False, reason=str(reason))
    return Probe(present=True, reason=_what_is_there(found, seen))


def devices(nvml: Any = None, build: TorchBuild | None = None) -> tuple[Device, ...]:
    """Return the GPUs that this program may use, as torch numbers them; none if `probe` says so."""
    try:
        seen = usable(machine(nvml, links=False), build or torch_build()).seen
    except AbsentError:
        return ()
    return tuple(_device(index, each) for index, each in enumerate(seen))


@functools.cache
def host() -> Machine:
    """Return what NVML says of this host, all that its GPUs hang on included; asked once in a process.

    Raises:
        AbsentError: as `machine` does.
    """
    return machine()


def topology_of_this_host() -> Topology | None:
    """Return the graph of the GPUs that this program may use, by NVML, with what only `nvidia-smi topo -m` says.

    Where the two contradict each other it is NVML's, and a warning says what they differ in.
    """
    from devices_cuda.compare import completed, disagreements
    from devices_cuda.files import matrix_of_this_host
    from devices_cuda.graph import topology

    try:
        found = host()
        seen = usable(found, None).seen
    except AbsentError:
        return None
    try:
        told = matrix_of_this_host()
    except RecordError:
        return topology(found, seen)
    if differences := disagreements(found, told):
        warnings.warn(
            f"NVML and nvidia-smi contradict each other: {'; '.join(differences)}", RuntimeWarning, stacklevel=2
        )
        return topology(found, seen)
    return topology(*_renewed(completed(found, told), seen))


def _renewed(found: Machine, seen: tuple[Seen, ...]) -> tuple[Machine, tuple[Seen, ...]]:
    """Return a machine, and what was seen of an older state of it as it is now."""
    return found, tuple(Seen(found.gpus[each.gpu.index], each.instance) for each in seen)


def usable(found: Machine, build: TorchBuild | None) -> Visible:
    """Return the GPUs of a machine that this torch and this environment let a program use.

    Raises:
        AbsentError: there are none.
    """
    if not found.gpus:
        raise AbsentError(f"the NVIDIA driver{_version(found)} is loaded, but sees no GPU")
    if build is not None and build.cuda is None:
        raise AbsentError(
            f"{_count(found)} here, but this torch ({build.version}) was built without CUDA: install one that was, "
            "as https://pytorch.org/get-started says"
        )
    if (
        build is not None
        and build.cuda_major is not None
        and found.cuda is not None
        and found.cuda[0] < build.cuda_major
    ):
        raise AbsentError(
            f"the NVIDIA driver{_version(found)} serves CUDA {found.cuda[0]}.{found.cuda[1]} at most, and this torch "
            f"was built with {build.cuda}: install a newer driver, or a torch for CUDA {found.cuda[0]}"
        )
    left = visible(found, os.environ.get(VARIABLE))
    if not left.seen:
        raise AbsentError(left.reason or f"{VARIABLE} hides all {_count(found)}")
    if lost := [each.gpu for each in left.seen if each.gpu.fault is not None]:
        whole = ",".join(each.gpu.uuid for each in left.seen if each.gpu.uuid is not None)
        raise AbsentError(
            f"{'; '.join(f'GPU {gpu.index}: {gpu.fault}' for gpu in lost)}. "
            + (f"Hide it, and the rest can be used: {VARIABLE}={whole}" if whole else "There is no other")
        )
    return left


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        loaded = "an NVIDIA driver is loaded, but " if _LOADED.exists() else ""
        raise AbsentError(
            f"{loaded}nvidia-ml-py, which finds GPUs, is not installed: pip install 'devices[cuda]'"
        ) from None
    return pynvml


def _device(index: int, seen: Seen) -> Device:
    whole = seen.instance or seen.gpu
    return Device("cuda", "cuda", index, whole.name or seen.gpu.name, whole.memory, whole.free)


def _what_is_there(found: Machine, left: Visible) -> str:
    names = [each.instance.name or each.gpu.name if each.instance else each.gpu.name for each in left.seen]
    kinds = ", ".join(f"{names.count(name)} {name or 'GPU of no name'}" for name in dict.fromkeys(names))
    cuda = "" if found.cuda is None else f", CUDA {found.cuda[0]}.{found.cuda[1]}"
    parts = [f"{kinds}; driver{_version(found)}{cuda}"]
    if len(left.seen) < len(found.gpus) and left.seen[0].instance is None:
        parts.append(f"{VARIABLE} leaves {len(left.seen)} of {len(found.gpus)}")
    if left.reason:
        parts.append(left.reason)
    if odd := numbering(found):
        parts.append(odd)
    return "; ".join(parts)


def numbering(found: Machine) -> str:
    """Return what to set so that CUDA numbers the GPUs as NVML does; "" where all are alike, or it is set."""
    is_alike = len({(gpu.name, gpu.capability) for gpu in found.gpus}) <= 1
    if is_alike or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return ""
    return "the GPUs differ, and CUDA may number them in another order: set CUDA_DEVICE_ORDER=PCI_BUS_ID"


def _count(found: Machine) -> str:
    return "1 GPU is" if len(found.gpus) == 1 else f"{len(found.gpus)} GPUs are"


def _version(found: Machine) -> str:
    return f" {found.driver}" if found.driver else ""
