"""`torch.neuron`: what 3.5 lists of it, and what torch asks of any device's module."""

from __future__ import annotations

from typing import Any

import torch

from . import limits, machine, tensors
from .streams import Event, Stream, current_stream, default_stream, set_stream, stream

__all__ = ["Event", "Stream", "current_stream", "default_stream", "set_stream", "stream"]

device_count = machine.device_count
current_device = machine.current_device
is_initialized = machine.is_initialized
_is_in_bad_fork = machine.is_in_bad_fork


def is_available() -> bool:
    return machine.device_count() > 0


def _index(given: Any) -> int:
    if given is None:
        return machine.current_device()
    if isinstance(given, int):
        return given
    index = torch.device(given).index
    return machine.current_device() if index is None else index


def set_device(device: Any) -> None:
    machine.set_current(_index(device))


def synchronize(device: Any = None) -> None:
    machine.touch()


def get_device_name(device: Any = 0) -> str:
    return f"neuron:{_index(device)}"


def get_device_properties(device: Any = None) -> Any:
    machine.touch()
    machine.checked(_index(device))
    return _Properties


class _Properties:
    name = "stand-in"
    total_memory = limits.MEMORY


class device:  # noqa: N801 - torch's name
    """A context in which another device is the current one."""

    def __init__(self, device: Any) -> None:
        self._index = _index(device)

    def __enter__(self) -> None:
        self._before = machine.current_device()
        if self._index >= 0:
            machine.set_current(self._index)

    def __exit__(self, *error: object) -> None:
        machine.set_current(self._before)


def memory_allocated(device: Any = None) -> int:
    return tensors.held.now


def max_memory_allocated(device: Any = None) -> int:
    return tensors.held.peak


memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated


def reset_peak_memory_stats(device: Any = None) -> None:
    tensors.held.peak = tensors.held.now


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return limits.MEMORY - tensors.held.now, limits.MEMORY


def empty_cache() -> None: ...


def manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


manual_seed_all = manual_seed


def initial_seed() -> int:
    return torch.default_generator.initial_seed()


def get_rng_state(device: Any = None) -> torch.Tensor:
    return torch.default_generator.get_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    torch.default_generator.set_state(state)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float32, torch.float16, torch.bfloat16]


def is_bf16_supported() -> bool:
    return True
