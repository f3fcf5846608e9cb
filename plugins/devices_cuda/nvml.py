"""What NVML says of this host's GPUs, as a `Machine`: no CUDA context is made, and torch is not imported.

Each call may be one that the GPU does not support, that this driver is too old for, or that the installed nvidia-ml-py
does not know: what it was to say is then None, and a line in `Machine.unanswered` says why.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

from devices_cuda.machine import (
    ANCESTORS,
    CLIQUE_TYPES,
    FABRIC_STATES,
    MAX_LINKS,
    Clique,
    Fabric,
    Gpu,
    Machine,
    MigInstance,
    NvLink,
    Pair,
)
from devices_cuda.record import MAX_GPUS, RecordError
from devices_cuda.sysfs import Sysfs

# NVML's codes. They are part of its binary interface and never change; an older nvidia-ml-py lacks the newest names.
_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
_REMOTES = {0x00: "gpu", 0x01: "npu", 0x02: "switch", 0xFF: "unknown"}
_ANCESTORS = dict(zip((0, 10, 20, 30, 40, 50), ANCESTORS, strict=True))
_READ, _WRITE, _OVER_NVLINK = 0, 1, 2  # nvidia-ml-py has a tuple for the first of these
_P2P_OK, _P2P_UNKNOWN = 0, 6
_UP = 1  # NVML_FEATURE_ENABLED
_HEALTH = {1: "healthy", 2: "unhealthy", 3: "limited capacity"}
_INVALID_ARGUMENT, _NOT_SUPPORTED, _FUNCTION_NOT_FOUND, _ARGUMENT_VERSION_MISMATCH = 2, 3, 13, 25
_OLDER_DRIVER = (_FUNCTION_NOT_FOUND, _ARGUMENT_VERSION_MISMATCH, _INVALID_ARGUMENT)
_UNKNOWN = 999

_MOST = 2**62
_WORDS_OF_NODES = 16  # enough for 1024 NUMA nodes


def collect(nvml: Any, sysfs: Sysfs | None = None, *, links: bool = True) -> Machine:
    """Return what NVML, which is initialized, says of this host.

    Args:
        nvml: the module pynvml, or what has its functions.
        sysfs: the kernel's files; those of this host if None.
        links: whether to ask for what the GPUs hang on: NVLinks, domains, PCI, network devices.

    Raises:
        NVMLError: it cannot even say how many GPUs there are.
        RecordError: it says a number that cannot be.
    """
    asked = _Asked(nvml)
    said = nvml.nvmlDeviceGetCount()
    if (count := _whole(said, 0, MAX_GPUS)) is None:
        raise RecordError(f"it says that there are {said!r} GPUs")
    driver = asked.text("the driver's version", "nvmlSystemGetDriverVersion")
    version = asked.number("the driver's CUDA version", "nvmlSystemGetCudaDriverVersion_v2", least=1000, most=99_999)
    found = [_gpu(asked, index) for index in range(count)]
    gpus, handles = [gpu for gpu, _ in found], [handle for _, handle in found]
    machine = Machine(
        source="NVML",
        gpus=tuple(gpus),
        driver=driver or None,
        cuda=None if version is None else (version // 1000, version % 1000 // 10),
    )
    files = Sysfs() if sysfs is None else sysfs
    if links:
        placed = [
            gpu if handle is None else _with_links(asked, files, gpu, handle)
            for gpu, handle in zip(gpus, handles, strict=True)
        ]
        pairs = [
            _pair(asked, first, second, handles[first], handles[second])
            for first, second in itertools.combinations(range(count), 2)
            if handles[first] is not None and handles[second] is not None
        ]
        machine = replace(machine, gpus=tuple(placed), pairs=tuple(pairs), nics=files.nics())
    return replace(machine, unanswered=(*asked.unanswered, *files.unanswered))


def _gpu(asked: _Asked, index: int) -> tuple[Gpu, Any]:
    """Return a GPU and NVML's handle of it; None for one that cannot be opened."""
    who = f"GPU {index}"
    handle, fault = asked.handle(who, index)
    if handle is None:
        return Gpu(index, fault=fault), None
    memory, free = _memory(asked, who, handle)
    mig = asked.call(who, "nvmlDeviceGetMigMode", handle)
    is_mig = bool(mig[0]) if isinstance(mig, (list, tuple)) and mig else None
    gpu = Gpu(
        index,
        uuid=asked.text(who, "nvmlDeviceGetUUID", handle) or None,
        name=asked.text(who, "nvmlDeviceGetName", handle),
        pci=_pci(asked.call(who, "nvmlDeviceGetPciInfo", handle)),
        memory=memory,
        free=free,
        capability=_capability(asked.call(who, "nvmlDeviceGetCudaComputeCapability", handle)),
        mig=is_mig,
        instances=_instances(asked, who, handle) if is_mig else (),
    )
    return gpu, handle


def _memory(asked: _Asked, who: str, handle: Any) -> tuple[int | None, int | None]:
    said = asked.call(who, "nvmlDeviceGetMemoryInfo", handle)
    memory, free = (_whole(getattr(said, what, None), 0, _MOST) for what in ("total", "free"))
    # Where GPU and CPU share one memory some drivers say 0.
    return memory or None, free if memory else None


def _capability(said: Any) -> tuple[int, int] | None:
    if not isinstance(said, (list, tuple)) or len(said) != 2:
        return None
    major, minor = _whole(said[0], 1, 99), _whole(said[1], 0, 9)
    return None if major is None or minor is None else (major, minor)


def _instances(asked: _Asked, who: str, handle: Any) -> tuple[MigInstance, ...]:
    found = []
    for place in range(asked.number(who, "nvmlDeviceGetMaxMigDeviceCount", handle, most=64) or 0):
        # The places of instances that were not made are NotFound, which is no news.
        instance = asked.call(who, "nvmlDeviceGetMigDeviceHandleByIndex", handle, place, quiet=True)
        if instance is None:
            continue
        name = f"{who}, MIG instance {place}"
        if uuid := asked.text(name, "nvmlDeviceGetUUID", instance):
            memory, free = _memory(asked, name, instance)
            found.append(MigInstance(uuid, asked.text(name, "nvmlDeviceGetName", instance), memory, free))
    return tuple(found)


def _with_links(asked: _Asked, files: Sysfs, gpu: Gpu, handle: Any) -> Gpu:
    who = f"GPU {gpu.index}"
    path, numa = files.place(gpu.pci) if gpu.pci is not None else (None, None)
    return replace(
        gpu,
        path=path,
        numa=numa if numa is not None else _nearest_node(asked, who, handle),
        memory_numa=asked.number(who, "nvmlDeviceGetNumaNodeId", handle, most=2**16),
        pcie_generation=asked.number(who, "nvmlDeviceGetMaxPcieLinkGeneration", handle, least=1, most=9),
        pcie_width=asked.number(who, "nvmlDeviceGetMaxPcieLinkWidth", handle, least=1, most=32),
        nvlinks=_nvlinks(asked, who, handle),
        fabric=_fabric(asked, who, handle),
    )


def _nearest_node(asked: _Asked, who: str, handle: Any) -> int | None:
    said = asked.call(who, "nvmlDeviceGetMemoryAffinity", handle, _WORDS_OF_NODES, 0)
    # An array of ctypes, which is no sequence by name.
    words = [] if isinstance(said, (bytes, str)) or not hasattr(said, "__getitem__") else list(said)
    if any(_whole(word, 0, 2**64 - 1) is None for word in words):
        return None
    # Nodes of the GPU's own memory may be in the set too; the host's come first.
    return next((64 * place + (word & -word).bit_length() - 1 for place, word in enumerate(words) if word), None)


def _nvlinks(asked: _Asked, who: str, handle: Any) -> tuple[NvLink, ...] | None:
    """Return the links that are up; None where the driver does not say whether there are any."""
    found: list[NvLink] = []
    for number in range(MAX_LINKS):
        state, error = asked.answer("nvmlDeviceGetNvLinkState", handle, number)
        if error is not None:
            # A GPU without NVLink does not support the question, one with fewer links finds the number invalid.
            if error in (_NOT_SUPPORTED, _INVALID_ARGUMENT):
                continue
            asked.note(who, "nvmlDeviceGetNvLinkState", number)
            return None
        if state == _UP:
            about = f"{who}, NVLink {number}"
            version = asked.call(about, "nvmlDeviceGetNvLinkVersion", handle, number)
            remote = asked.call(about, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
            peer = _pci(asked.call(about, "nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
            found.append(NvLink(number, _known(_VERSIONS, version), _known(_REMOTES, remote), peer))
    return tuple(found)


def _fabric(asked: _Asked, who: str, handle: Any) -> Fabric | None:
    """Return the GPU's NVLink domain by the newest structure that the driver knows."""
    for function, structure in (
        ("nvmlDeviceGetGpuFabricInfo_v4", "c_nvmlGpuFabricInfo_v4_t"),
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
        ("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t"),
    ):
        if (make := getattr(asked.nvml, structure, None)) is None:
            continue
        said = make()
        _, error = asked.answer(function, handle, ctypes.byref(said))
        if error is None:
            return _fabric_of(said)
        if error == _NOT_SUPPORTED:
            return Fabric("not supported")
        if error not in _OLDER_DRIVER:
            break
    asked.note(who, "nvmlDeviceGetGpuFabricInfo")
    return None


def _fabric_of(said: Any) -> Fabric | None:
    state = _known(dict(enumerate(FABRIC_STATES)), said.state)
    if state is None:
        return None
    cluster = bytes(said.clusterUuid).hex()
    if hasattr(said, "cliques"):
        types = dict(enumerate(CLIQUE_TYPES))
        some = said.cliques[: min(said.numCliques, len(said.cliques))]
        cliques = tuple(Clique(_known(types, clique.type), clique.id) for clique in some)
    else:
        # Before there were several, a clique was what reaches each other's memory by pointers.
        cliques = (Clique(CLIQUE_TYPES[0], said.cliqueId),)
    is_member = state == "completed"
    return Fabric(
        state,
        # A machine whose NVLinks end at its own switches has a cluster of zeros.
        cluster=cluster if is_member and cluster.strip("0") else None,
        cliques=cliques if is_member else (),
        status=int(said.status),
        health=_known(_HEALTH, getattr(said, "healthSummary", None)),
    )


def _pair(asked: _Asked, first: int, second: int, one: Any, other: Any) -> Pair:
    who = f"GPUs {first} and {second}"
    both = {
        what: [asked.call(who, "nvmlDeviceGetP2PStatus", *ends, what) for ends in ((one, other), (other, one))]
        for what in (_READ, _WRITE, _OVER_NVLINK)
    }
    allowed = {what: _is_allowed(statuses) for what, statuses in both.items()}
    ancestor = asked.call(who, "nvmlDeviceGetTopologyCommonAncestor", one, other)
    return Pair(
        first,
        second,
        ancestor=_known(_ANCESTORS, ancestor),
        over_nvlink=allowed[_OVER_NVLINK],
        read=allowed[_READ],
        write=allowed[_WRITE],
    )


def _is_allowed(statuses: list[Any]) -> bool | None:
    """Return whether both directions are; None if one is not known and the other does not forbid it."""
    if any(isinstance(status, int) and status not in (_P2P_OK, _P2P_UNKNOWN) for status in statuses):
        return False
    return True if all(status == _P2P_OK for status in statuses) else None


@final
class _Asked:
    """NVML's functions, called so that none can do harm, and what they did not answer."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.unanswered: list[str] = []
        self._last = ""

    def answer(self, function: str, *arguments: Any) -> tuple[Any, int | None]:
        """Return what a function says and None; or None and NVML's error code."""
        call: Callable[..., Any] | None = getattr(self.nvml, function, None)
        if call is None:
            self._last = "this nvidia-ml-py does not know it"
            return None, _FUNCTION_NOT_FOUND
        try:
            return call(*arguments), None
        except self.nvml.NVMLError as error:
            self._last = str(error)
            code = getattr(error, "value", None)
            return None, code if isinstance(code, int) else _UNKNOWN
        except Exception as error:
            # A name that is no UTF-8, a structure of another size: ours to report, not to die of.
            self._last = f"{type(error).__name__}: {error}"
            return None, _UNKNOWN

    def note(self, who: str, function: str, *arguments: Any) -> None:
        """Keep why the last call had no answer."""
        listed = f" {', '.join(map(str, arguments))}" if arguments else ""
        self.unanswered.append(f"{who}: {function}{listed}: {self._last}")

    def call(self, who: str, function: str, *arguments: Any, quiet: bool = False) -> Any:
        """Return what a function says; None, and why is kept, if nothing."""
        said, error = self.answer(function, *arguments)
        # That a GPU has no such thing is an answer.
        if error is not None and error != _NOT_SUPPORTED and not quiet:
            self.note(who, function)
        return said

    def handle(self, who: str, index: int) -> tuple[Any, str]:
        """Return NVML's handle of a GPU, or None and the fault."""
        found, error = self.answer("nvmlDeviceGetHandleByIndex", index)
        if error is None:
            return found, ""
        self.note(who, "nvmlDeviceGetHandleByIndex")
        return None, self._last

    def text(self, who: str, function: str, *arguments: Any) -> str:
        """Return the text that a function says; "" if it says none."""
        said = self.call(who, function, *arguments)
        if isinstance(said, bytes):
            # Before version 11.510 nvidia-ml-py did not decode.
            said = said.decode(errors="replace")
        return said if isinstance(said, str) else ""

    def number(self, who: str, function: str, *arguments: Any, least: int = 0, most: int = _MOST) -> int | None:
        """Return the whole number that a function says, if it is one that can be."""
        return _whole(self.call(who, function, *arguments), least, most)


def _whole(said: Any, least: int, most: int) -> int | None:
    """Return a whole number of that range; None for anything else, NVML's word for "not available" included."""
    return said if isinstance(said, int) and not isinstance(said, bool) and least <= said <= most else None


def _known(names: dict[int, str], code: Any) -> str | None:
    return names.get(code) if isinstance(code, int) and not isinstance(code, bool) else None


def _pci(info: Any) -> str | None:
    """Return a PCI address as the kernel writes it: NVML's has eight digits of domain, in capitals."""
    numbers = [_whole(getattr(info, what, None), 0, 2**32 - 1) for what in ("domain", "bus", "device")]
    domain, bus, device = numbers
    if domain is None or bus is None or device is None or bus > 255 or device > 31 or domain == 2**32 - 1:
        return None
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"
