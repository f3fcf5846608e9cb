"""What `torch.neuron`, `torch.cuda` and `torch.accelerator` answer about emulated devices."""

from __future__ import annotations

import itertools
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch

from devices import _torch
from devices.testing._device_here import Here, here
from devices.testing._device_marks import Held
from devices.testing._replaced import Replaced, on_some_threads

_stream_numbers = itertools.count(1)


@final
class Stream:
    """A stream of a device that does everything at once."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        found = here()
        self.device = None if found is None else found.place.device if device is None else found.meant(device)
        self.priority = priority
        self.stream_id = next(_stream_numbers)

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...


@final
class Event:
    """An event on a device that does everything at once; what it measures is the time of the host."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._time: float | None = None

    def record(self, stream: object = None) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to `end`."""
        if self._time is None or end._time is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end._time - self._time) * 1e3


class Current:
    """A context in which another device is the current one."""

    def __init__(self, device: Any) -> None:
        found = here()
        self._here = _nowhere() if found is None else found
        self._index = None if device is None or device == -1 else self._here.index_of(device)

    def __enter__(self) -> Current:
        self._before = self._here.index
        if self._index is not None:
            self._here.index = self._index
        return self

    def __exit__(self, *error: object) -> None:
        self._here.index = self._before


def _nowhere() -> Here:
    """Return what a thread sees that sees no device."""
    return Here("cuda", 0, 0, 0)


@final
class _On:
    """A context in which another stream is the current one."""

    def __init__(self, here: Here, stream: Any) -> None:
        self._here = here
        self._stream = stream

    def __enter__(self) -> Any:
        self._before = self._here.stream
        if self._stream is not None:
            self._here.stream = self._stream
        return self._stream

    def __exit__(self, *error: object) -> None:
        self._here.stream = self._before


def _held(here: Here, device: Any) -> Held:
    return here.at(here.index_of(device)).held


def _set_device(here: Here, _: object, device: Any) -> None:
    here.index = here.index_of(device)


def _current_stream(here: Here, _: object, device: Any = None) -> Any:
    if here.stream is None:
        here.stream = Stream()
    return here.stream


def _set_stream(here: Here, _: object, stream: Any) -> None:
    here.stream = stream


@final
@dataclass(frozen=True)
class Properties:
    """What is known of a device; of the rest, which another one would have to make up, torch's names are missing."""

    name: str
    total_memory: int
    major: int
    minor: int


def _name(here: Here, _: object, device: Any = None) -> str:
    return f"emulated {here.type} device {here.index_of(device)}"


def _properties(here: Here, _: object, device: Any = None) -> Properties:
    return Properties(_name(here, None, device), here.memory, *_CAPABILITY)


def _free_and_total(here: Here, _: object, device: Any = None) -> tuple[int, int]:
    return here.memory - _held(here, device).now, here.memory


def _peak(here: Here, device: Any) -> int:
    return _held(here, device).peak


def _reset_peak(here: Here, _: object, device: Any = None) -> None:
    held = _held(here, device)
    held.peak = held.now


def _stats(here: Here, _: object, device: Any = None) -> dict[str, Any]:
    held = _held(here, device)
    return {
        f"{kind}_bytes.all.{when}": size
        for kind in ("allocated", "reserved", "active", "requested")
        for when, size in (("current", held.now), ("peak", held.peak))
    }


def _nested_stats(here: Here, _: object, device: Any = None) -> dict[str, Any]:
    held = _held(here, device)
    both = {"all": {"current": held.now, "peak": held.peak}}
    return dict.fromkeys(("allocated_bytes", "reserved_bytes", "active_bytes"), both)


def _seed_all(here: Here, _: object, seed: int) -> None:
    for index in range(here.count):
        here.seed(index, seed)


def _states(here: Here, _: object) -> list[torch.Tensor]:
    return [here.random_state(index) for index in range(here.count)]


def _set_states(here: Here, _: object, states: Any) -> None:
    for index, state in enumerate(states):
        here.set_random_state(index, state)


def _nothing(*_: Any, **__: Any) -> None: ...


def _yes(*_: Any, **__: Any) -> bool:
    return True


def _no(*_: Any, **__: Any) -> bool:
    return False


_CAPABILITY = 9, 0
"""An H100's: torch asks for it to see what a device can do."""

# Each takes what the thread sees, what torch has under that name, and the arguments.
_ANSWERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("init", "_lazy_init", "synchronize", "empty_cache", "ipc_collect"), _nothing),
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), _yes),
    "_is_in_bad_fork": _no,
    "device_count": lambda here, _: here.count,
    "current_device": lambda here, _: here.index,
    "set_device": _set_device,
    "get_device_name": _name,
    "get_device_properties": _properties,
    "get_device_capability": lambda here, _, device=None: _CAPABILITY,
    "get_amp_supported_dtype": lambda *_: [torch.bfloat16, torch.float16, torch.float32],
    # Streams.
    **dict.fromkeys(("current_stream", "default_stream"), _current_stream),
    "set_stream": _set_stream,
    "stream": lambda here, _, stream: _On(here, stream),
    # Memory: what tensors hold; nothing is kept in reserve.
    **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda here, _, device=None: _held(here, device).now),
    **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda here, _, device=None: _peak(here, device)),
    **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), _reset_peak),
    "memory_stats": _stats,
    "mem_get_info": _free_and_total,
    # Random numbers.
    "manual_seed": lambda here, _, seed: here.seed(here.index, seed),
    "manual_seed_all": _seed_all,
    "initial_seed": lambda here, _: here.initial_seed(here.index),
    "get_rng_state": lambda here, _, device=None: here.random_state(here.index_of(device)),
    "set_rng_state": lambda here, _, state, device=None: here.set_random_state(here.index_of(device), state),
    "get_rng_state_all": _states,
    "set_rng_state_all": _set_states,
}


def replaced_of_cuda() -> Iterator[Replaced]:
    """Yield the names of `torch.cuda` that are replaced."""
    for name, instead in _ANSWERS.items():
        if hasattr(torch.cuda, name):
            yield Replaced(torch.cuda, name, instead, only="cuda")
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        yield Replaced(torch.cuda.nvtx, name, _nothing, only="cuda")
    yield Replaced(torch.cuda, "device", Current, everywhere=True)
    yield Replaced(torch.cuda, "Stream", Stream, everywhere=True)
    yield Replaced(torch.cuda, "Event", Event, everywhere=True)
    yield Replaced(torch.cuda, "_initialized", True, everywhere=True)


def replaced_of_accelerator() -> Iterator[Replaced]:
    """Yield the names behind `torch.accelerator` that are replaced."""
    owner, prefix = _torch.ACCELERATOR_CALLS
    for name, instead in _ACCELERATOR.items():
        yield Replaced(owner, prefix + name, instead)
    yield Replaced(*_torch.ACCELERATOR, lambda here, _: torch.device(here.type))


def _exchange(here: Here, _: object, index: int) -> int:
    before = here.index
    if index >= 0:
        here.index = here.checked(index)
    return before


_ACCELERATOR: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("synchronizeDevice", "emptyCache", "emptyHostCache", "resetAccumulatedStats"), _nothing),
    "getAccelerator": lambda here, _: torch.device(here.type),
    "getDeviceIndex": lambda here, _: here.index,
    "setDeviceIndex": _set_device,
    **dict.fromkeys(("exchangeDevice", "maybeExchangeDevice"), _exchange),
    "getStream": _current_stream,
    "setStream": _set_stream,
    "isAllocatorInitialized": _yes,
    "getDeviceStats": _nested_stats,
    "getMemoryInfo": _free_and_total,
    "resetPeakStats": _reset_peak,
}


# `torch.neuron`, which torch has not without its vendor's package.


def _absent(name: str, outside: Any) -> Callable[..., Any]:
    def answer(*_: Any, **__: Any) -> Any:
        if isinstance(outside, Exception):
            raise outside
        return outside

    answer.__name__ = name
    return answer


_OUTSIDE: dict[str, Any] = {
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported", "_is_in_bad_fork"), False),
    "device_count": 0,
    **dict.fromkeys(("manual_seed", "manual_seed_all", "_lazy_init", "empty_cache"), None),
    "get_rng_state_all": [],
}
"""What the module answers where there is no device, so that torch's own questions find none."""

_modules: dict[str, types.ModuleType] = {}
_naming = threading.Lock()


def named(device_type: str) -> bool:
    """Give torch's spare device type that name, and a module; return False if another package did.

    Torch names it once for a process, and takes it for an accelerator from then on, which outside a context it is not
    to do: what stays is a module that has no device, and two of torch's functions that say so.

    Raises:
        RuntimeError: it has another name.
    """
    with _naming:
        return _named(device_type)


def _named(device_type: str) -> bool:
    if device_type in _modules:
        return True
    if hasattr(torch, device_type):
        return False
    before = [(owner, name, getattr(owner, name)()) for owner, name in _asked_for_accelerator()]
    _torch.rename_spare_device_type(device_type)
    module = types.ModuleType(f"torch.{device_type}", "Devices that `devices.testing` emulates on this CPU.")
    for name, instead in _ANSWERS.items():
        missing = RuntimeError(f"there is no {device_type} device here; tensors are emulated within device_tensors()")
        outside = _absent(name, _OUTSIDE.get(name, missing))
        setattr(module, name, on_some_threads(outside, instead, device_type))
    vars(module).update(device=Current, Stream=Stream, Event=Event, _initialized=True)
    _torch.add_device_module(device_type, module)
    _modules[device_type] = module
    for owner, name, outside in before:
        setattr(owner, name, _absent(name, outside))
    return True


def _asked_for_accelerator() -> Iterator[tuple[Any, str]]:
    owner, prefix = _torch.ACCELERATOR_CALLS
    yield owner, f"{prefix}getAccelerator"
    yield _torch.ACCELERATOR
