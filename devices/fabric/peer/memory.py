"""`DeviceMemory`: what a vendor's runtime has to offer, so that ranks reach the memory of each other's devices."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DeviceMemory(abc.ABC):
    """The memory of this rank's device, and that of its peers' where it lies. What cannot be done is a `RuntimeError`.

    Attributes:
        type: torch's type of the device.
    """

    type: str

    @abc.abstractmethod
    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return so many bytes of this rank's device, flat and of dtype uint8, that a peer can map."""

    @abc.abstractmethod
    def handle(self, memory: torch.Tensor) -> str:
        """Return what a peer maps that by, which `allocate` returned."""

    @abc.abstractmethod
    def map(self, handle: str, nbytes: int) -> torch.Tensor:
        """Return a peer's memory, flat and of dtype uint8, where it lies; it passes for memory of this rank's device.

        A peer's handle is mapped once, and none of this rank's own.
        """

    @abc.abstractmethod
    def unmap(self, memory: torch.Tensor) -> None:
        """Give back what `map` returned; nothing reads it any more."""

    @abc.abstractmethod
    def free(self, memory: torch.Tensor) -> None:
        """Give back what `allocate` returned; no peer has it mapped."""

    @abc.abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the current stream of the device; it need not be done when this returns."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Wait, on the host, until all is done that the current stream of the device was told.

        From then on what was written there is what peers read, and what was read there may be changed.
        """
