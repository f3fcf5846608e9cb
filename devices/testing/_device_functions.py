"""What torch's functions do where tensors seem to be on a device: they make tensors there, and sort them by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from devices import _torch
from devices.testing._device_generator import Generator
from devices.testing._device_here import CPU, Here
from devices.testing._device_marks import put, storage_of
from devices.testing._replaced import Replaced

Tensor = torch.Tensor
Original = Callable[..., Any]


def replaced() -> Iterator[Replaced]:
    """Yield the names that are replaced for devices of any type."""
    yield from (Replaced(torch, name, instead) for name, instead in _FUNCTIONS.items())
    yield Replaced(torch, "Generator", Generator, everywhere=True)
    yield Replaced(DataLoader, "__iter__", _unpinned)
    yield Replaced(*_torch.GROUP_BY_DEVICE, _group_tensors)


def replaced_for_cuda() -> Iterator[Replaced]:
    """Yield those that are replaced for CUDA alone."""
    yield from (Replaced(torch, name, _by_number, only="cuda") for name in _FACTORIES)
    # Asked whether cuDNN takes a tensor, torch would warn that it was built without.
    yield Replaced(torch.backends.cudnn, "is_acceptable", lambda *_: False, only="cuda")


def _from_data(here: Here, original: Original, data: Any, *args: Any, **options: Any) -> Any:
    """Do what `torch.tensor`, `as_tensor` and `asarray` do, by making it on the CPU and moving it."""
    device = options.pop("device", None)
    if device is None:
        device = data.device if isinstance(data, Tensor) else torch.get_default_device()
    needs_grad = options.pop("requires_grad", False)
    result = original(data, *args, device=CPU, **options).to(device)
    return result.requires_grad_() if needs_grad else result


def _sparse(here: Here, original: Original, *args: Any, **options: Any) -> Any:
    device = options.pop("device", None)
    if device is None:
        return original(*args, **options)
    tensors = [value.to(device) if isinstance(value, Tensor) else value for value in args]
    result = original(*tensors, device=CPU, **options)
    put(storage_of(result), here.place_of(here.meant(device)))
    return result


def _by_number(here: Here, original: Original, *args: Any, **options: Any) -> Any:
    """Make a tensor; torch does not read a number as a device where it knows of no accelerator."""
    if isinstance(options.get("device"), int):
        options["device"] = here.meant(options["device"])
    return original(*args, **options)


def _group_tensors(here: Here, original: Original, lists: Any, with_indices: bool = False) -> Any:
    """Sort an optimizer's tensors by dtype and device, of which torch's C++ sees the CPU alone."""
    groups: dict[Any, Any] = {}
    for (_, dtype), (sorted_lists, indices) in original(lists, True).items():
        for at, index in enumerate(indices):
            first = sorted_lists[0][at]
            group, its_indices = groups.setdefault((first.device, dtype), ([[] for _ in sorted_lists], []))
            for each, values in zip(group, sorted_lists, strict=True):
                if values:
                    each.append(values[at])
            its_indices.append(index)
    return groups if with_indices else {key: (group, []) for key, (group, _) in groups.items()}


def _unpinned(here: Here, original: Original, loader: Any) -> Any:
    # Torch would pin memory on a thread of its own, which sees no device.
    pin_memory, loader.pin_memory = loader.pin_memory, False
    try:
        return original(loader)
    finally:
        loader.pin_memory = pin_memory


# Autocast: the CPU's stands in for the device's.


def _set_autocast_enabled(here: Here, original: Original, *args: Any) -> Any:
    if args[0] != here.type:
        return original(*args)
    is_on = here.autocast_before is not None
    if args[1] and not is_on:
        here.autocast_before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        original("cpu", True)
        torch.set_autocast_dtype("cpu", here.autocast_dtype)
    elif is_on and not args[1]:
        assert here.autocast_before is not None
        enabled, dtype = here.autocast_before
        here.autocast_before = None
        original("cpu", enabled)
        torch.set_autocast_dtype("cpu", dtype)
    return None


def _is_autocast_enabled(here: Here, original: Original, *args: Any) -> Any:
    return here.autocast_before is not None if args and args[0] == here.type else original(*args)


def _set_autocast_dtype(here: Here, original: Original, device_type: str, dtype: torch.dtype) -> Any:
    if device_type != here.type:
        return original(device_type, dtype)
    here.autocast_dtype = dtype
    return original("cpu", dtype) if here.autocast_before is not None else None


def _get_autocast_dtype(here: Here, original: Original, device_type: str) -> Any:
    return here.autocast_dtype if device_type == here.type else original(device_type)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("tensor", "as_tensor", "asarray"), _from_data),
    **dict.fromkeys(
        ("sparse_coo_tensor", "sparse_csr_tensor", "sparse_csc_tensor", "sparse_bsr_tensor", "sparse_bsc_tensor"),
        _sparse,
    ),
    "set_autocast_enabled": _set_autocast_enabled,
    "is_autocast_enabled": _is_autocast_enabled,
    "set_autocast_dtype": _set_autocast_dtype,
    "get_autocast_dtype": _get_autocast_dtype,
}
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
