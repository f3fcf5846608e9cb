"""A stand-in for the memory of devices: nameless files that processes map, with a stream that does things late.

It keeps what CUDA's documents say of memory that is shared: none is mapped by its own process, none is freed while a
peer has it mapped, what a stream was told is not done before the host has waited for it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from devices import DeviceMemory


@final
@dataclass
class MappedFiles(DeviceMemory):
    """The memory of one device.

    Args:
        own: by address, the descriptor of what is allocated.
        theirs: by address, the descriptor of what is mapped of peers.
        late: what the stream was told and has not done.
        refuses: handles of ranks that it cannot map, by a part of their text.
        limit: bytes that can be allocated.
    """

    own: dict[int, int] = field(default_factory=dict)
    theirs: dict[int, int] = field(default_factory=dict)
    late: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    refuses: str = "nothing"
    limit: int = 1 << 30

    type = "cpu"

    def allocate(self, nbytes: int) -> torch.Tensor:
        if nbytes > self.limit:
            raise RuntimeError(f"{nbytes} bytes are more than there are")
        self.limit -= nbytes
        descriptor = os.memfd_create("a device", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        memory = _mapped(descriptor, nbytes)
        self.own[memory.data_ptr()] = descriptor
        return memory

    def handle(self, memory: torch.Tensor) -> str:
        return f"{os.getpid()} {self.own[memory.data_ptr()]}"

    def map(self, handle: str, nbytes: int) -> torch.Tensor:
        process, descriptor = handle.split()
        if int(process) == os.getpid():
            raise RuntimeError("memory is not mapped by the process that has it")
        if self.refuses in handle:
            raise RuntimeError("the devices are not linked")
        mine = os.open(Path(f"/proc/{process}/fd/{descriptor}"), os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(mine, fcntl.LOCK_SH)
        memory = _mapped(mine, nbytes)
        self.theirs[memory.data_ptr()] = mine
        return memory

    def unmap(self, memory: torch.Tensor) -> None:
        if self.late:
            raise RuntimeError("the stream is not done")
        descriptor = self.theirs.pop(memory.data_ptr())
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def free(self, memory: torch.Tensor) -> None:
        descriptor = self.own.pop(memory.data_ptr())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("a peer has it mapped, and it is freed") from None
        os.close(descriptor)
        self.limit += memory.numel()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.late.append((target, source.clone()))

    def finish(self) -> None:
        while self.late:
            target, source = self.late.pop(0)
            target.copy_(source)


def _mapped(descriptor: int, nbytes: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, nbytes), dtype=torch.uint8)
