"""What has the functions of CUDA's runtime library that share memory between processes, over the memory of the host.

It is no more forgiving than CUDA's documents: a handle is not opened by the process that made it; what is opened again
is counted; memory that another process has open is not to be freed, which the documents leave undefined and which is an
error here; an address that is none is an invalid value.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_HANDLE, NO_PEER_ACCESS, UNDEFINED = 0, 1, 2, 400, 217, 9999
INVALID_DEVICE = 101
TEXTS = {
    INVALID_VALUE: b"invalid argument",
    INVALID_DEVICE: b"invalid device ordinal",
    OUT_OF_MEMORY: b"out of memory",
    INVALID_HANDLE: b"invalid resource handle",
    NO_PEER_ACCESS: b"peer access is not supported between these two devices",
    UNDEFINED: b"undefined behavior",
}


@final
class Runtime:
    """One process's.

    Args:
        limit: bytes of the GPU.
        is_linked: whether the GPU reaches the others.
        gpus: the PCI addresses of those that the process sees.
        apart: of those, the pairs of which the first does not reach the second.
    """

    def __init__(
        self,
        limit: int = 1 << 30,
        *,
        is_linked: bool = True,
        gpus: Sequence[str] = (),
        apart: Collection[tuple[int, int]] = (),
    ) -> None:
        self._gpus = gpus
        self._apart = apart
        self._limit = limit
        self._is_linked = is_linked
        self.own: dict[int, tuple[int, mmap.mmap]] = {}
        # By address: the handle, what holds it, and how often it was opened.
        self.open: dict[int, list[Any]] = {}
        self.last_error = SUCCESS

    def _said(self, code: int) -> int:
        self.last_error = code or self.last_error
        return code

    def cudaMalloc(self, pointer: Any, nbytes: int) -> int:
        if nbytes > self._limit:
            return self._said(OUT_OF_MEMORY)
        self._limit -= nbytes
        descriptor = os.memfd_create("a GPU", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        pointer._obj.value = address = _keep(memory := mmap.mmap(descriptor, nbytes))
        self.own[address] = descriptor, memory
        return SUCCESS

    def cudaFree(self, pointer: Any) -> int:
        if pointer.value not in self.own:
            return self._said(INVALID_VALUE)
        descriptor, memory = self.own.pop(pointer.value)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._said(UNDEFINED)
        os.close(descriptor)
        self._limit += len(memory)
        return SUCCESS

    def cudaIpcGetMemHandle(self, handle: Any, pointer: Any) -> int:
        if pointer.value not in self.own:
            return self._said(INVALID_VALUE)
        descriptor, memory = self.own[pointer.value]
        text = f"{os.getpid()} {descriptor} {len(memory)}".encode().ljust(64)
        ctypes.memmove(handle._obj.reserved, text, 64)
        return SUCCESS

    def cudaIpcOpenMemHandle(self, pointer: Any, handle: Any, flags: int) -> int:
        text = bytes(handle.reserved)
        try:
            process, theirs, nbytes = map(int, text.split())
        except ValueError:
            return self._said(INVALID_HANDLE)
        if process == os.getpid():
            return self._said(INVALID_HANDLE)
        if not self._is_linked or flags != 1:
            return self._said(NO_PEER_ACCESS)
        for address, known in self.open.items():
            if known[0] == text:
                known[2] += 1
                pointer._obj.value = address
                return SUCCESS
        try:
            descriptor = os.open(Path(f"/proc/{process}/fd/{theirs}"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return self._said(INVALID_HANDLE)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        pointer._obj.value = address = _keep(mmap.mmap(descriptor, nbytes))
        self.open[address] = [text, descriptor, 1]
        return SUCCESS

    def cudaIpcCloseMemHandle(self, pointer: Any) -> int:
        if pointer.value not in self.open:
            return self._said(INVALID_VALUE)
        known = self.open[pointer.value]
        known[2] -= 1
        if not known[2]:
            del self.open[pointer.value]
            fcntl.flock(known[1], fcntl.LOCK_UN)
            os.close(known[1])
        return SUCCESS

    def cudaDeviceGetByPCIBusId(self, device: Any, address: bytes) -> int:
        if address.decode() not in self._gpus:
            return self._said(INVALID_DEVICE)
        device._obj.value = self._gpus.index(address.decode())
        return SUCCESS

    def cudaDeviceCanAccessPeer(self, can: Any, device: int, peer: int) -> int:
        if not (0 <= device < len(self._gpus) and 0 <= peer < len(self._gpus)):
            return self._said(INVALID_DEVICE)
        # Of itself the documents say that it does not.
        can._obj.value = int(device != peer and (device, peer) not in self._apart)
        return SUCCESS

    def cudaGetErrorString(self, code: int) -> bytes:
        return TEXTS.get(code, b"unrecognized error code")

    def cudaGetLastError(self) -> int:
        code, self.last_error = self.last_error, SUCCESS
        return code


_kept: list[Any] = []
"""The host's memory is there as long as the process: a tensor over it may still be."""


def _keep(memory: mmap.mmap) -> int:
    view = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
    _kept.append(view)
    return ctypes.addressof(view)
