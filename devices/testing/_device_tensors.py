"""`device_tensors()`: tensors on a CPU that carry another device, so that a program meets the errors of that device.

All memory stays the CPU's, and torch's C++ (autograd, optimizers, DDP, process groups) sees nothing else. Storages are
marked with the device that they count as being on; a mode that each op of the thread comes through refuses ops whose
tensors are not together and marks what the others return; and the names by which Python asks for a device, or moves a
tensor to one, are replaced as long as any thread is within the context.

What does not hold: a `grad` that is assigned from another device is not refused; nor is anything within one op's own
C++, where all is on the CPU. An op of torch's C++ that moves a CPU tensor by itself is refused (`ctc_loss` with lengths
in a CPU tensor), and what it makes for itself and returns untouched says that it is on the device. Ops that have no
kernel for CPUs are missing (SyncBatchNorm's). `torch.compile` runs the function as it is, and refuses `fullgraph=True`.
An untyped storage's own `device` is the CPU. Afterwards the name of the device type stays, for torch cannot take it
back: `torch.device("neuron")` is valid, and `torch.neuron` says that there is no device.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch

from devices import _torch
from devices._world import World
from devices.algorithms.started import Started
from devices.algorithms.verbs import Verbs
from devices.c10d.group import DevicesGroup
from devices.errors import ArgumentError, UnsupportedError
from devices.fabric.progress import FabricWork
from devices.testing import _device_answers, _device_functions, _device_runtime
from devices.testing._device_here import Here, here, set_here
from devices.testing._device_marks import UNDECIDED, on, put, storage_of
from devices.testing._device_ops import DeviceOps, mixed
from devices.testing._replaced import Replaced, Replacements


@contextlib.contextmanager
def device_tensors(
    device_type: str, index: int, *, count: int | None = None, memory: int | None = None
) -> Iterator[torch.device]:
    """Let tensors of this thread be on devices of `device_type` while this lasts, all of it on the CPU in truth.

    `torch.device(device_type, 3)`, `tensor.to(...)`, `tensor.device`, `torch.get_device_module(device_type)` and
    `torch.accelerator` work as on such devices. An op on tensors of two devices raises torch's own error, scalars on
    the CPU excepted; so does `numpy()` of a tensor that is not on the CPU. What is computed is what a CPU computes.
    A device draws random numbers of its own, as devices do: `torch.manual_seed` seeds it.

    After the context, and on other threads, its tensors are plain CPU tensors.

    Args:
        device_type: "cuda", where this torch has none, or the name of an accelerator that torch does not know by
            itself: "neuron". Torch takes one such name for the life of a process.
        index: the current device, until the program sets another one.
        count: how many devices there are; as many as there are ranks on this host (LOCAL_WORLD_SIZE), if not said.
        memory: the bytes that each says it has; this host's, if not said. Having more is no error here.

    Yields:
        The current device.

    Raises:
        UnsupportedError: there are devices of that type in truth, or torch has given its spare name to another type.

    >>> import torch
    >>> from devices.testing._device_tensors import device_tensors
    >>> with device_tensors("neuron", 0):
    ...     x = torch.ones(2, device="neuron")
    ...     x + torch.ones(2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    RuntimeError: Expected all tensors to be on the same device, but found at least two devices, neuron:0 and cpu! ...
    """
    if here() is not None:
        raise ArgumentError("device_tensors() within another on the same thread: leave that one first")
    found = count if count is not None else max(index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not 0 <= index < found:
        raise ArgumentError(f"index={index} of {found} devices: indices go from 0 to {found - 1}")
    _prepare(device_type)
    seen = Here(device_type, index, found, _host_memory() if memory is None else memory)
    held = seen.place.held
    held.peak = held.now
    names = [_EVERYWHERE, *([_CUDA] if device_type == "cuda" else [])]
    with contextlib.ExitStack() as stack:
        for replacements in names:
            replacements.hold()
            stack.callback(_release, replacements)
        with _torch.handled_ops(DeviceOps(seen)):
            set_here(seen)
            try:
                yield seen.place.device
            finally:
                seen.leave()
                set_here(None)


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _release(replacements: Replacements) -> None:
    if replacements.release():
        _torch.forget_functions()


def _prepare(device_type: str) -> None:
    """Make torch know the type."""
    _torch.remember_functions()
    _saved_with_their_device()
    if device_type == "cuda":
        if torch.backends.cuda.is_built():
            raise UnsupportedError("this torch is built for CUDA: use its devices, or emulate them on a CPU build")
        return
    try:
        if _device_runtime.named(device_type):
            return
    except RuntimeError as error:
        raise UnsupportedError(
            f"torch's spare device type is {_torch.spare_device_type()!r} in this process, and it cannot be "
            f"{device_type!r} too: {error}"
        ) from error
    raise UnsupportedError(f"torch.{device_type} is here already: {device_type!r} is a type of device that torch knows")


# Checkpoints: a saved tensor says on which device it was, and comes back to it.


@functools.cache
def _saved_with_their_device() -> None:
    torch.serialization.register_package(5, _location, _restored)


def _location(storage: Any) -> str | None:
    if here() is None:
        return None
    place = on(getattr(storage, "_untyped_storage", storage))
    return None if place is None else str(place)


def _restored(storage: Any, location: str) -> Any:
    seen = here()
    if seen is None or torch.device(location).type != seen.type:
        return None
    put(getattr(storage, "_untyped_storage", storage), seen.place_of(torch.device(location)))
    return storage


# The process group: it moves the CPU's memory, wherever that counts as being, and other ranks' as well as its own.

_VERBS = (
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter"),
    *("permute", "barrier", "send", "recv", "recv_any", "exchange"),
)
_WAITING: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Started, ("wait", "is_completed")),
    (FabricWork, ("advance",)),
)


def _verbs_on(here: Here, original: Any, group: DevicesGroup, device_type: str, **how: Any) -> Any:
    return original(group, group.group.device.type if device_type == here.type else device_type, **how)


def _world_device(world: World) -> torch.device:
    """Return the device of a world of this machine's CPU: where the thread sees others, its own one of those."""
    device: torch.device = vars(world)["device"]
    seen = here()
    return device if seen is None or device.type != "cpu" else seen.at(seen.own).device


def _set_world_device(world: World, device: torch.device) -> None:
    vars(world)["device"] = device


def _get_backend(here: Here, original: Any, group: DevicesGroup, device: torch.device) -> Any:
    return original(group, group.group.device if device.type == here.type else device)


def _of_one_device(here: Here, original: Any, verbs: Verbs, *args: Any, **kwargs: Any) -> Any:
    """Call a verb, whose tensors lie all on the CPU or all on this rank's own device."""
    own = here.at(here.own)
    places = []
    for tensor in (value for value in args if isinstance(value, torch.Tensor)):
        where = on(storage_of(tensor))
        if where is not UNDECIDED and where not in places:
            places.append(where)
    for where in places:
        if where is not None and where is not own:
            raise mixed(original.__name__, where, own)
    if len(places) > 1:
        raise mixed(original.__name__, own, None)
    return _in_truth(here, original, verbs, *args, **kwargs)


def _in_truth(here: Here, original: Any, *args: Any, **kwargs: Any) -> Any:
    set_here(None)
    try:
        # Nor does a default device that the program has set hold there.
        with _torch.NoFunctionModes():
            return original(*args, **kwargs)
    finally:
        set_here(here)


def _everywhere() -> Iterator[Replaced]:
    yield from _device_answers.replaced()
    yield from _device_functions.replaced()
    yield from _device_runtime.replaced_of_accelerator()
    yield Replaced(World, "device", property(_world_device, _set_world_device), everywhere=True)
    yield Replaced(DevicesGroup, "verbs_on", _verbs_on)
    yield Replaced(DevicesGroup, "_get_backend", _get_backend)
    yield from (Replaced(Verbs, name, _of_one_device) for name in _VERBS)
    yield from (Replaced(owner, name, _in_truth) for owner, names in _WAITING for name in names)


def _of_cuda() -> Iterator[Replaced]:
    yield from _device_answers.replaced_for_cuda()
    yield from _device_functions.replaced_for_cuda()
    yield from _device_runtime.replaced_of_cuda()


_EVERYWHERE = Replacements(_everywhere)
_CUDA = Replacements(_of_cuda)
