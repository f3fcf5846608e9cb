"""A group's shared memory: made by one rank, found by the others through its descriptor, never given a name."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import final

import numpy as np

from devices.fabric.host.layout import Layout

_PREFIX = "devices "

Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@final
class Segment:
    """The memory of a group, mapped. It is gone when the last process that has mapped it is, however that ends.

    Args:
        layout: of what group.
        descriptor: of the memory; the caller's to close.

    Attributes:
        words: all of it as unsigned words of 8 bytes. Python reads and writes one at a time, and x86-64 keeps stores,
            and loads, in their order: who sees a flag sees all that was written before it.
        bytes: all of it.
    """

    def __init__(self, layout: Layout, descriptor: int) -> None:
        self.layout = layout
        memory = mmap.mmap(descriptor, layout.total)
        self.words = memoryview(memory).cast("Q")
        self.bytes: Array = np.frombuffer(memory, np.uint8)

    def say(self, rank: int, text: bytes) -> None:
        """Set a rank's report."""
        start = self.layout.report(rank)
        self.bytes[start : start + 4] = 0
        self.bytes[start + 4 : start + 4 + len(text)] = np.frombuffer(text, np.uint8)
        self.bytes[start : start + 4] = np.frombuffer(len(text).to_bytes(4, "little"), np.uint8)

    def said(self, rank: int) -> bytes:
        """Return a rank's report; nothing if it has made none."""
        start = self.layout.report(rank)
        length = int.from_bytes(self.bytes[start : start + 4].tobytes(), "little")
        return self.bytes[start + 4 : start + 4 + length].tobytes()


def make(name: str, bytes: int) -> int:
    """Return a descriptor of new memory that only this user's processes may open; it has no place in a file system."""
    descriptor = os.memfd_create((_PREFIX + name)[:200], os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def find(pid: int, descriptor: int) -> int:
    """Return a descriptor of the memory that process `pid` has open as `descriptor`.

    Raises:
        OSError: it has not, or it is no memory that `make` made.
    """
    path = Path(f"/proc/{pid}/fd/{descriptor}")
    if not (found := str(path.readlink())).startswith(f"/memfd:{_PREFIX}"):
        raise OSError(f"{path} is {found}, not memory of devices")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
