"""What one thread sees of the emulated devices: which there are, which is the current one, what they draw next."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import Any, final

import torch

from devices.testing._device_marks import Place, place

CPU = torch.device("cpu")

_SEED = 67280421310721  # torch's own, before anyone sets one
_MASK = (1 << 64) - 1

_thread = threading.local()


def here() -> Here | None:
    """Return what this thread sees; None outside a context, and in the code of an op, where all is on the CPU."""
    found: Here | None = getattr(_thread, "here", None)
    return found


def set_here(found: Here | None) -> None:
    """Let this thread see that from now on."""
    _thread.here = found


@final
class Here:
    """The emulated devices of one thread.

    Args:
        type: the devices' type.
        index: its own, which is the current one until the program sets another.
        count: how many there are.
        memory: the bytes that each has.
    """

    def __init__(self, type: str, index: int, count: int, memory: int) -> None:
        self.type = type
        self.own = index
        self.index = index
        self.count = count
        self.memory = memory
        self.stream: Any = None
        self.autocast_dtype = torch.float16 if type == "cuda" else torch.bfloat16
        self.autocast_before: tuple[bool, torch.dtype] | None = None
        self._places: dict[int, Place] = {}
        self._seeds: dict[int, tuple[int, int]] = {}

    def leave(self) -> None:
        """Undo what the program left on the thread."""
        if self.autocast_before is not None:
            torch.set_autocast_enabled(self.type, False)

    @property
    def place(self) -> Place:
        """The current device."""
        return self.at(self.index)

    def at(self, index: int) -> Place:
        """Return the device with that index."""
        found = self._places.get(index)
        if found is None:
            found = self._places[index] = place(torch.device(self.type, self.checked(index)))
        return found

    def index_of(self, device: Any) -> int:
        """Return the index that is meant where torch takes a device, an index, or None for the current one."""
        if isinstance(device, str):
            device = torch.device(device)
        if isinstance(device, torch.device):
            if device.type != self.type:
                raise ValueError(f"Expected a {self.type} device, but got: {device}")
            device = device.index
        return self.checked(self.index if device is None or device == -1 else device)

    def checked(self, index: int) -> int:
        """Return `index` if there is such a device."""
        if not 0 <= index < self.count:
            raise RuntimeError(f"{self.type} error: invalid device ordinal {index}; there are {self.count} devices")
        return index

    def place_of(self, device: torch.device) -> Place | None:
        """Return where a tensor is whose device is given as `device`; None for a device that is not emulated."""
        if device.type != self.type:
            return None
        index = device.index
        return self.at(self.index if index is None else index)

    def meant(self, device: Any) -> torch.device:
        """Return the device that is meant where torch takes one, with its index if it is emulated."""
        if isinstance(device, int):
            return self.at(device).device
        found = self.place_of(device := torch.device(device))
        return device if found is None else found.device

    # Random numbers: what a device draws depends on its seed and on how many it has drawn, as Philox has it.

    def seed(self, index: int, seed: int) -> None:
        self._seeds[index] = seed & _MASK, 0

    def initial_seed(self, index: int) -> int:
        return self._seeds.get(index, (_SEED, 0))[0]

    def random_state(self, index: int) -> torch.Tensor:
        """Return the state of a device's generator, in the form of CUDA's: its seed and its offset."""
        return torch.frombuffer(bytearray(struct.pack("<QQ", *self._seeds.get(index, (_SEED, 0)))), dtype=torch.uint8)

    def set_random_state(self, index: int, state: torch.Tensor) -> None:
        seed, offset = struct.unpack("<QQ", bytes(state.tolist()))
        self._seeds[index] = seed, offset

    @contextlib.contextmanager
    def drawing(self, index: int) -> Iterator[None]:
        """Let torch's default generator be the device's, for one op; it is left as it was."""
        seed, offset = self._seeds.get(index, (_SEED, 0))
        before = torch.default_generator.get_state()
        # An odd factor and a shift spread offsets that are close over all seeds.
        mixed = (seed ^ ((offset + 1) * 0x9E3779B97F4A7C15)) & _MASK
        torch.default_generator.manual_seed((mixed ^ (mixed >> 31)) & (_MASK >> 1))
        try:
            yield
        finally:
            torch.default_generator.set_state(before)

    def drawn(self, index: int, count: int) -> None:
        """Note that `count` numbers were drawn."""
        seed, offset = self._seeds.get(index, (_SEED, 0))
        self._seeds[index] = seed, offset + (count + 3) // 4 * 4
