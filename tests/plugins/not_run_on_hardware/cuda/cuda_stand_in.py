"""What has pynvml's functions and raises pynvml's errors, and answers for a machine: no driver, and no more forgiving.

The codes are pynvml's own constants. As NVML's documents have it, nothing works before `nvmlInit` and after the last
`nvmlShutdown`, a handle that is none and a link past the last are invalid arguments, a structure of a version that the
driver does not know is a version mismatch, and what a GPU has not is not supported.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pynvml

from devices_cuda.machine import Gpu, Machine, MigInstance, NvLink

VERSIONS = {
    "1.0": pynvml.NVML_NVLINK_VERSION_1_0,
    "2.0": pynvml.NVML_NVLINK_VERSION_2_0,
    "2.2": pynvml.NVML_NVLINK_VERSION_2_2,
    "3.0": pynvml.NVML_NVLINK_VERSION_3_0,
    "3.1": pynvml.NVML_NVLINK_VERSION_3_1,
    "4.0": pynvml.NVML_NVLINK_VERSION_4_0,
    "5.0": pynvml.NVML_NVLINK_VERSION_5_0,
    "6.0": pynvml.NVML_NVLINK_VERSION_6_0,
}
REMOTES = {
    "gpu": pynvml.NVML_NVLINK_DEVICE_TYPE_GPU,
    "npu": pynvml.NVML_NVLINK_DEVICE_TYPE_IBMNPU,
    "switch": pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH,
    "unknown": pynvml.NVML_NVLINK_DEVICE_TYPE_UNKNOWN,
}
ANCESTORS = {
    "internal": pynvml.NVML_TOPOLOGY_INTERNAL,
    "single": pynvml.NVML_TOPOLOGY_SINGLE,
    "multiple": pynvml.NVML_TOPOLOGY_MULTIPLE,
    "hostbridge": pynvml.NVML_TOPOLOGY_HOSTBRIDGE,
    "node": pynvml.NVML_TOPOLOGY_NODE,
    "system": pynvml.NVML_TOPOLOGY_SYSTEM,
}
STATES = {
    "not supported": pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED,
    "not started": pynvml.NVML_GPU_FABRIC_STATE_NOT_STARTED,
    "in progress": pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS,
    "completed": pynvml.NVML_GPU_FABRIC_STATE_COMPLETED,
}
CLIQUES = {
    "unicast pointer": pynvml.NVML_GPU_FABRIC_CLIQUE_TYPE_UNICAST_POINTER,
    "multicast pointer": pynvml.NVML_GPU_FABRIC_CLIQUE_TYPE_MULTICAST_POINTER,
    "unicast logical endpoint": pynvml.NVML_GPU_FABRIC_CLIQUE_TYPE_UNICAST_LOGICAL_ENDPOINT,
    "multicast logical endpoint": pynvml.NVML_GPU_FABRIC_CLIQUE_TYPE_MULTICAST_LOGICAL_ENDPOINT,
}
HEALTH = {
    None: pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_NOT_SUPPORTED,
    "healthy": pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY,
    "unhealthy": pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY,
    "limited capacity": pynvml.NVML_GPU_FABRIC_HEALTH_SUMMARY_LIMITED_CAPACITY,
}
READ, WRITE, OVER_NVLINK = 0, pynvml.NVML_P2P_CAPS_INDEX_WRITE, pynvml.NVML_P2P_CAPS_INDEX_NVLINK
NO_CLUSTER = "00" * pynvml.NVML_GPU_FABRIC_UUID_LEN


def refused(code: int) -> Any:
    raise pynvml.NVMLError(code)


@dataclass(frozen=True, eq=False)
class Handle:
    """NVML's word for a GPU or an instance: opaque."""

    of: Gpu | MigInstance


class StandIn:
    """A driver for a machine.

    Args:
        machine: what it has.
        fabric: the newest version of the structure of NVLink domains that it knows; 0 for none.
        lacks: functions that the driver is too old for.
        unknown: names that nvidia-ml-py is too old for.
        errors: by function, NVML's code that it fails with, or another exception.
        says: by function, what it says in place of the truth.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        fabric: int = 4,
        lacks: tuple[str, ...] = (),
        unknown: tuple[str, ...] = (),
        errors: dict[str, int | Exception] | None = None,
        says: dict[str, Any] | None = None,
    ) -> None:
        self._machine, self._fabric, self._lacks, self._unknown = machine, fabric, lacks, unknown
        self._errors, self._says = errors or {}, says or {}
        self._handles = {gpu.index: Handle(gpu) for gpu in machine.gpus}
        self.open = 0
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self._unknown:
            raise AttributeError(name)
        if not name.startswith("nvml"):
            return getattr(pynvml, name)
        if not hasattr(pynvml, name):
            raise AttributeError(f"nvidia-ml-py has no {name}")
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.asked.append(name)
        if name in self._lacks:
            return refused(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        if name == "nvmlInit":
            self._fail_if_told(name)
            self.open += 1
            return None
        if self.open == 0:
            return refused(pynvml.NVML_ERROR_UNINITIALIZED)
        self._fail_if_told(name)
        if name == "nvmlShutdown":
            self.open -= 1
            return None
        truth = getattr(self, f"_{name.removeprefix('nvml')}")(*arguments)
        if name not in self._says:
            return truth
        said = self._says[name]
        return said(truth) if callable(said) else said

    def _fail_if_told(self, name: str) -> None:
        fault = self._errors.get(name)
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            refused(fault)

    # The host.

    def _DeviceGetCount(self) -> int:
        return len(self._machine.gpus)

    def _SystemGetDriverVersion(self) -> str:
        return self._machine.driver or refused(pynvml.NVML_ERROR_UNKNOWN)

    def _SystemGetCudaDriverVersion_v2(self) -> int:
        major, minor = self._machine.cuda or refused(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        return 1000 * major + 10 * minor

    # A GPU.

    def _DeviceGetHandleByIndex(self, index: int) -> Handle:
        if index not in self._handles:
            refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if self._machine.gpus[index].fault is not None:
            refused(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self._handles[index]

    def _gpu(self, handle: Handle) -> Gpu:
        if handle not in self._handles.values() or not isinstance(handle.of, Gpu):
            refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        assert isinstance(handle.of, Gpu)
        return handle.of

    def _said(self, value: Any) -> Any:
        return refused(pynvml.NVML_ERROR_NOT_SUPPORTED) if value is None or value == "" else value

    def _DeviceGetUUID(self, handle: Handle) -> str:
        return str(self._said(handle.of.uuid))

    def _DeviceGetName(self, handle: Handle) -> str:
        return str(self._said(handle.of.name))

    def _DeviceGetMemoryInfo(self, handle: Handle) -> Any:
        memory = pynvml.c_nvmlMemory_t()
        memory.total, memory.free = self._said(handle.of.memory), self._said(handle.of.free)
        memory.used = memory.total - memory.free
        return memory

    def _DeviceGetPciInfo(self, handle: Handle) -> Any:
        return pci_info(self._said(self._gpu(handle).pci))

    def _DeviceGetCudaComputeCapability(self, handle: Handle) -> tuple[int, int]:
        major, minor = self._said(self._gpu(handle).capability)
        return major, minor

    def _DeviceGetNumaNodeId(self, handle: Handle) -> int:
        return int(self._said(self._gpu(handle).memory_numa))

    def _DeviceGetMemoryAffinity(self, handle: Handle, words: int, scope: int) -> Any:
        assert scope == pynvml.NVML_AFFINITY_SCOPE_NODE
        node = self._said(self._gpu(handle).numa)
        found = (ctypes.c_ulonglong * words)()
        for each in (node, self._gpu(handle).memory_numa or node):
            if each // 64 >= words:
                refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
            found[each // 64] |= 1 << (each % 64)
        return found

    def _DeviceGetMaxPcieLinkGeneration(self, handle: Handle) -> int:
        return int(self._said(self._gpu(handle).pcie_generation))

    def _DeviceGetMaxPcieLinkWidth(self, handle: Handle) -> int:
        return int(self._said(self._gpu(handle).pcie_width))

    # MIG.

    def _DeviceGetMigMode(self, handle: Handle) -> list[int]:
        mode = int(self._said(self._gpu(handle).mig))
        return [mode, mode]

    def _DeviceGetMaxMigDeviceCount(self, handle: Handle) -> int:
        return 7 if self._said(self._gpu(handle).mig) else 0

    def _DeviceGetMigDeviceHandleByIndex(self, handle: Handle, place: int) -> Handle:
        instances = self._gpu(handle).instances
        if not 0 <= place < 7:
            refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if place >= len(instances):
            refused(pynvml.NVML_ERROR_NOT_FOUND)
        return Handle(instances[place])

    # NVLink.

    def _link(self, handle: Handle, number: int) -> NvLink | None:
        gpu = self._gpu(handle)
        if gpu.nvlinks is None:
            refused(pynvml.NVML_ERROR_UNKNOWN)
        if not gpu.nvlinks:
            refused(pynvml.NVML_ERROR_NOT_SUPPORTED)
        assert gpu.nvlinks is not None
        if not 0 <= number <= max(link.number for link in gpu.nvlinks):
            refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return next((link for link in gpu.nvlinks if link.number == number), None)

    def _live(self, handle: Handle, number: int) -> NvLink:
        link = self._link(handle, number)
        return refused(pynvml.NVML_ERROR_NOT_SUPPORTED) if link is None else link

    def _DeviceGetNvLinkState(self, handle: Handle, number: int) -> int:
        is_up = self._link(handle, number) is not None
        return int(pynvml.NVML_FEATURE_ENABLED if is_up else pynvml.NVML_FEATURE_DISABLED)

    def _DeviceGetNvLinkVersion(self, handle: Handle, number: int) -> int:
        return VERSIONS[self._said(self._live(handle, number).version)]

    def _DeviceGetNvLinkRemoteDeviceType(self, handle: Handle, number: int) -> int:
        return REMOTES[self._said(self._live(handle, number).remote)]

    def _DeviceGetNvLinkRemotePciInfo(self, handle: Handle, number: int) -> Any:
        return pci_info(self._said(self._live(handle, number).peer))

    # NVLink domains.

    def _DeviceGetGpuFabricInfo_v4(self, handle: Handle, reference: Any) -> None:
        info = self._structure(reference, pynvml.c_nvmlGpuFabricInfo_v4_t, 4)
        fabric = self._domain(handle, info)
        info.numCliques = len(fabric.cliques)
        for place, clique in enumerate(fabric.cliques):
            info.cliques[place].type, info.cliques[place].id = CLIQUES[clique.type], clique.id
        info.healthSummary = HEALTH[fabric.health]

    def _DeviceGetGpuFabricInfoV(self, handle: Handle, reference: Any) -> None:
        version = getattr(reference._obj, "version", None)
        versions = {
            pynvml.nvmlGpuFabricInfo_v3: (pynvml.c_nvmlGpuFabricInfo_v3_t, 3),
            pynvml.nvmlGpuFabricInfo_v2: (pynvml.c_nvmlGpuFabricInfo_v2_t, 2),
        }
        if version not in versions:
            refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        info = self._structure(reference, *versions[version])
        fabric = self._domain(handle, info)
        info.cliqueId = first_clique(fabric)
        if hasattr(info, "healthSummary"):
            info.healthSummary = HEALTH[fabric.health]

    def _DeviceGetGpuFabricInfo(self, handle: Handle, reference: Any) -> None:
        info = self._structure(reference, pynvml.c_nvmlGpuFabricInfo_t, 1)
        info.cliqueId = first_clique(self._domain(handle, info))

    def _structure(self, reference: Any, kind: Any, version: int) -> Any:
        if self._fabric < version:
            is_there = version in (2, 3) and self._fabric >= 2
            refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH if is_there else pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        assert type(reference._obj) is kind, "the driver would write past the end of another structure"
        return reference._obj

    def _domain(self, handle: Handle, info: Any) -> Any:
        fabric = self._gpu(handle).fabric
        if fabric is None:
            refused(pynvml.NVML_ERROR_UNKNOWN)
        info.state, info.status = STATES[fabric.state], fabric.status
        cluster = bytes.fromhex(fabric.cluster or NO_CLUSTER)
        for place, byte in enumerate(cluster):
            info.clusterUuid[place] = byte
        return fabric

    # Two GPUs.

    def _DeviceGetTopologyCommonAncestor(self, one: Handle, other: Handle) -> int:
        return ANCESTORS[self._said(self._pair(one, other).ancestor)]

    def _DeviceGetP2PStatus(self, one: Handle, other: Handle, what: int) -> int:
        assert type(what) is int, "ctypes takes no tuple"
        pair = self._pair(one, other)
        allowed = {READ: pair.read, WRITE: pair.write, OVER_NVLINK: pair.over_nvlink}[what]
        if allowed is None:
            return int(pynvml.NVML_P2P_STATUS_UNKNOWN)
        return int(pynvml.NVML_P2P_STATUS_OK if allowed else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)

    def _pair(self, one: Handle, other: Handle) -> Any:
        pair = self._machine.pair(self._gpu(one).index, self._gpu(other).index)
        return refused(pynvml.NVML_ERROR_INVALID_ARGUMENT) if pair is None else pair


def first_clique(fabric: Any) -> int:
    return next((clique.id for clique in fabric.cliques if clique.type == "unicast pointer"), 0)


def pci_info(address: str) -> Any:
    """Return NVML's structure of a PCI address, its text in NVML's own spelling."""
    domain, bus, rest = address.split(":")
    device = rest.partition(".")[0]
    info = pynvml.nvmlPciInfo_t()
    info.domain, info.bus, info.device = int(domain, 16), int(bus, 16), int(device, 16)
    info.busId = f"{int(domain, 16):08X}:{bus.upper()}:{device.upper()}.0"
    return info
