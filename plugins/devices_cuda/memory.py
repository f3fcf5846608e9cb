"""Memory of GPUs that processes of a host map: CUDA IPC, by the runtime library that torch has loaded."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, final

import torch

from devices import DeviceMemory
from devices_cuda.dlpack import tensor_at
from devices_cuda.machine import Machine
from devices_cuda.presence import AbsentError, host, usable

_LAZY_PEER_ACCESS = 1
"""cudaIpcMemLazyEnablePeerAccess: the GPUs reach each other's memory from the first mapping on."""


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t."""

    _fields_: ClassVar[Any] = [("reserved", ctypes.c_ubyte * 64)]


def runtime() -> Any:
    """Return CUDA's runtime library; the one that torch has loaded already is found by its name.

    Raises:
        RuntimeError: there is none.
    """
    version = torch.version.cuda
    if version is None:
        raise RuntimeError("this torch was built without CUDA")
    name = f"libcudart.so.{version.partition('.')[0]}"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise RuntimeError(f"the runtime library of CUDA {version} cannot be loaded: {error}") from error
    pointer = ctypes.c_void_p
    library.cudaMalloc.argtypes = (ctypes.POINTER(pointer), ctypes.c_size_t)
    library.cudaFree.argtypes = (pointer,)
    library.cudaIpcGetMemHandle.argtypes = (ctypes.POINTER(_Handle), pointer)
    library.cudaIpcOpenMemHandle.argtypes = (ctypes.POINTER(pointer), _Handle, ctypes.c_uint)
    library.cudaIpcCloseMemHandle.argtypes = (pointer,)
    number = ctypes.POINTER(ctypes.c_int)
    library.cudaDeviceGetByPCIBusId.argtypes = (number, ctypes.c_char_p)
    library.cudaDeviceCanAccessPeer.argtypes = (number, ctypes.c_int, ctypes.c_int)
    library.cudaGetErrorString.argtypes = (ctypes.c_int,)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


@final
class CudaMemory(DeviceMemory):
    """The memory of one GPU, outside of what torch has of it. Not run on hardware.

    CUDA's documents say what is kept here: a handle is opened by other processes than its own, and what is exported is
    freed only when none has it open.

    Args:
        device: the GPU.
        library: CUDA's runtime, or what has its functions.
    """

    def __init__(self, device: torch.device, library: Any) -> None:
        self.type = device.type
        self._device = device
        self._library = library

    def allocate(self, nbytes: int) -> torch.Tensor:
        pointer = ctypes.c_void_p()
        with self._current():
            self._check("cudaMalloc", self._library.cudaMalloc(ctypes.byref(pointer), nbytes))
        return self._tensor(pointer, nbytes)

    def handle(self, memory: torch.Tensor) -> str:
        handle = _Handle()
        with self._current():
            code = self._library.cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(memory.data_ptr()))
        self._check("cudaIpcGetMemHandle", code)
        return bytes(handle.reserved).hex()

    def map(self, handle: str, nbytes: int) -> torch.Tensor:
        pointer = ctypes.c_void_p()
        theirs = _Handle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
        with self._current():
            code = self._library.cudaIpcOpenMemHandle(ctypes.byref(pointer), theirs, _LAZY_PEER_ACCESS)
        self._check("cudaIpcOpenMemHandle", code)
        return self._tensor(pointer, nbytes)

    def unmap(self, memory: torch.Tensor) -> None:
        with self._current():
            code = self._library.cudaIpcCloseMemHandle(ctypes.c_void_p(memory.data_ptr()))
        self._check("cudaIpcCloseMemHandle", code)

    def free(self, memory: torch.Tensor) -> None:
        with self._current():
            self._check("cudaFree", self._library.cudaFree(ctypes.c_void_p(memory.data_ptr())))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _current(self) -> AbstractContextManager[object]:
        """Let the runtime's calls be about this GPU: each thread has a current one."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _tensor(self, pointer: ctypes.c_void_p, nbytes: int) -> torch.Tensor:
        assert pointer.value is not None
        return tensor_at(pointer.value, nbytes, self._device)

    def _check(self, function: str, code: int) -> None:
        if code:
            # It is remembered, and torch would raise it at its next call.
            self._library.cudaGetLastError()
            text = self._library.cudaGetErrorString(code)
            raise RuntimeError(f"{function}: {text.decode(errors='replace')} (error {code} of CUDA's runtime)")


def address_of(index: int) -> str | None:
    """Return the PCI address of this process's GPU, as NVML has it; None where NVML says nothing of it."""
    try:
        seen = usable(host(), None).seen
    except AbsentError:
        return None
    return seen[index].gpu.pci if index < len(seen) else None


def memory_of(index: int, peers: Sequence[str | None]) -> CudaMemory | str:
    """Return the memory of this process's GPU, or why none of the peers' GPUs can be mapped beside it, in words.

    Args:
        index: torch's, of the GPU.
        peers: the PCI addresses of the members' GPUs, as NVML has them; None where that is not known.
    """
    try:
        found = host()
        seen = usable(found, None).seen
        mine = seen[index] if index < len(seen) else None
        if mine is not None and mine.instance is not None:
            return "it has a part of a GPU (MIG), and parts do not reach each other's memory"
        if mine is not None and (reason := why_apart(found, mine.gpu.pci, peers)):
            return reason
        library = runtime()
        return out_of_reach(library, index, peers) or CudaMemory(torch.device("cuda", index), library)
    except (AbsentError, RuntimeError) as error:
        return str(error)


def out_of_reach(library: Any, index: int, peers: Sequence[str | None]) -> str:
    """Return why a GPU does not reach the memory of another, by CUDA's runtime; "" if nothing says that it does not.

    It says nothing of GPUs that this process does not see: those NVML knows, and the mapping itself shows.
    """
    for peer in peers:
        other, can = ctypes.c_int(), ctypes.c_int()
        if peer is None:
            continue
        code = library.cudaDeviceGetByPCIBusId(ctypes.byref(other), peer.encode())
        if not code and other.value != index:
            code = library.cudaDeviceCanAccessPeer(ctypes.byref(can), index, other.value)
            if not code and not can.value:
                return f"its GPU, cuda:{index}, does not reach the memory of the GPU {peer}, as CUDA's runtime says"
        if code:
            library.cudaGetLastError()
    return ""


def why_apart(machine: Machine, own: str | None, peers: Sequence[str | None]) -> str:
    """Return why a GPU does not reach the memory of another; "" if nothing says that it does not."""
    places = {gpu.pci: gpu.index for gpu in machine.gpus if gpu.pci is not None}
    if own not in places:
        return ""
    for peer in peers:
        if peer is None or peer == own or peer not in places:
            continue
        pair = machine.pair(places[own], places[peer])
        if pair is not None and pair.read is False:
            return f"its GPU, {own}, does not reach the memory of the GPU {peer}, as NVML says"
    return ""
