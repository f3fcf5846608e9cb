"""What tensors say and do where they seem to be on a device: where they are, and how they get elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import nn

from devices import _torch
from devices.testing._device_here import CPU, Here
from devices.testing._device_marks import UNDECIDED, Place, on, put, resized, storage_of
from devices.testing._replaced import Replaced

Tensor = torch.Tensor
Original = Callable[..., Any]


def replaced() -> Iterator[Replaced]:
    """Yield the names of tensors, storages and modules that are replaced."""
    yield from (Replaced(Tensor, name, instead) for name, instead in _OF_TENSORS.items())
    yield Replaced(torch.UntypedStorage, "resize_", _resize)
    yield Replaced(nn.Module, "to", _module_to)
    yield Replaced(Tensor, _torch.WRAPPER, _wrapper)


def replaced_for_cuda() -> Iterator[Replaced]:
    """Yield those that are replaced for CUDA alone."""
    yield Replaced(Tensor, "is_cuda", _is_on_device, only="cuda")
    yield Replaced(Tensor, "cuda", _to_current, only="cuda")


# Where a tensor is.


def place_of(here: Here, tensor: Tensor) -> Place | None:
    """Return on which emulated device a tensor is; None for the CPU and for what is not emulated."""
    kind = type(tensor)
    if kind is not Tensor and kind is not nn.Parameter and hasattr(kind, "__tensor_flatten__"):
        # A tensor that wraps others is where they are.
        wrapper: Any = tensor
        inner, _ = wrapper.__tensor_flatten__()
        return place_of(here, getattr(tensor, inner[0]))
    found = on(storage_of(tensor))
    # What torch made for itself and nothing has met yet is most likely a gradient of something on the device.
    return here.place if found is UNDECIDED else found


def _device(here: Here, original: Original, tensor: Tensor) -> Any:
    place = place_of(here, tensor)
    return original(tensor) if place is None else place.device


def _is_cpu(here: Here, original: Original, tensor: Tensor) -> Any:
    return original(tensor) and place_of(here, tensor) is None


def _is_on_device(here: Here, original: Original, tensor: Tensor) -> bool:
    return place_of(here, tensor) is not None


def _get_device(here: Here, original: Original, tensor: Tensor) -> Any:
    place = place_of(here, tensor)
    return original(tensor) if place is None else place.device.index


def _type(here: Here, original: Original, tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dtype is None and place_of(here, tensor) is not None:
        return f"torch.{here.type}.{original(tensor).rpartition('.')[2]}"
    if isinstance(dtype, str) and dtype.startswith(f"torch.{here.type}."):
        return tensor.to(here.meant(here.type)).type(f"torch.{dtype.rpartition('.')[2]}")
    return original(tensor, dtype, *args, **kwargs)


def _dlpack_device(here: Here, original: Original, tensor: Tensor) -> Any:
    place = place_of(here, tensor)
    # DLPack's numbers for CUDA and for what it has no name for.
    return original(tensor) if place is None else (2 if here.type == "cuda" else 12, place.device.index)


# How it gets elsewhere.


@final
class _Moved(torch.autograd.Function):
    """A copy on another device; its gradient goes back to where the tensor was."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, device: torch.device, memory_format: Any) -> Tensor:
        return _torch.copied_to(tensor, device, None, memory_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.source = inputs[0].device

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return gradients[0].to(ctx.source), None, None


def moved(tensor: Tensor, device: torch.device, memory_format: Any = None) -> Tensor:
    """Return a copy of `tensor` on `device`, which is another one than its own."""
    if tensor.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Moved.apply(tensor, device, memory_format)  # type: ignore[no-untyped-call]
        return result
    return _torch.copied_to(tensor, device, None, memory_format)


def _to(here: Here, original: Original, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    rest, options = list(args), dict(kwargs)
    like = rest.pop(0) if rest and isinstance(rest[0], Tensor) else options.pop("other", None)
    if like is not None:
        device, dtype = like.device, like.dtype
        names = ["non_blocking", "copy"]
    else:
        by_place = rest and not isinstance(rest[0], torch.dtype)
        device = rest.pop(0) if by_place else options.pop("device", None)
        names = ["dtype", "non_blocking", "copy"]
        dtype = None
    options.update(zip(names, rest, strict=False))
    dtype = options.pop("dtype", dtype)
    if dtype is not None:
        options["dtype"] = dtype
    if device is None:
        return original(tensor, **options)
    device = here.meant(device)
    if device == tensor.device:
        return original(tensor, dtype=options.pop("dtype", tensor.dtype), **options)
    if device.type == "meta" or tensor.is_meta:
        return original(tensor, device=CPU if device.type == here.type else device, **options)
    result = moved(tensor, device, options.get("memory_format"))
    options.pop("copy", None)
    return original(result, **options) if dtype is not None else result


def _cpu(here: Here, original: Original, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    memory_format = args[0] if args else kwargs.get("memory_format")
    options = {} if memory_format is None else {"memory_format": memory_format}
    return tensor.to(CPU, **options)


def _to_current(here: Here, original: Original, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    names = ("device", "non_blocking", "memory_format")
    options = dict(zip(names, args, strict=False)) | kwargs
    device = options.pop("device", None)
    return tensor.to(here.meant(here.type if device is None else device), **options)


def _type_as(here: Here, original: Original, tensor: Tensor, other: Tensor) -> Any:
    return tensor.to(other)


def _copy_(here: Here, original: Original, tensor: Tensor, src: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(src, Tensor) and src.requires_grad and torch.is_grad_enabled() and src.device != tensor.device:
        src = src.to(tensor.device)
    return original(tensor, src, *args, **kwargs)


def _numpy(here: Here, original: Original, tensor: Tensor, *, force: bool = False) -> Any:
    place = place_of(here, tensor)
    if place is not None and not force:
        raise TypeError(
            f"can't convert {place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )
    return original(tensor if place is None else tensor.detach().cpu(), force=force)


def _new(here: Here, original: Original, tensor: Tensor, *args: Any, **options: Any) -> Any:
    device = options.pop("device", None)
    return original(tensor, *args, **options).to(tensor.device if device is None else device)


def _new_tensor(here: Here, original: Original, tensor: Tensor, data: Any, **options: Any) -> Any:
    device = options.pop("device", None)
    needs_grad = options.pop("requires_grad", False)
    result = original(tensor, data, **options).to(tensor.device if device is None else device)
    return result.requires_grad_() if needs_grad else result


def _pin_memory(here: Here, original: Original, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if (place := place_of(here, tensor)) is not None:
        raise RuntimeError(f"cannot pin a tensor on {place}: only dense CPU tensors can be pinned")
    # A host's memory is not pinned in truth, so nothing says that it is.
    return tensor.clone()


def _wrapper(here: Here, original: Original, *args: Any, **kwargs: Any) -> Any:
    """Make a tensor that wraps others on the CPU, as they are in truth, marked with the device that was asked for."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != here.type:
        return original(*args, **kwargs)
    result = original(*args, **{**kwargs, "device": CPU})
    put(storage_of(result), here.place_of(torch.device(device)))
    return result


def _module_to(here: Here, original: Original, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # A number is an index of the accelerator's, and without one torch does not read it.
    if args and isinstance(args[0], int):
        args = (here.meant(args[0]), *args[1:])
    return original(module, *args, **kwargs)


def _resize(here: Here, original: Original, storage: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(storage, *args, **kwargs)
    resized(storage)
    return result


_OF_TENSORS: dict[str, Callable[..., Any]] = {
    "device": _device,
    "is_cpu": _is_cpu,
    "get_device": _get_device,
    "type": _type,
    "__dlpack_device__": _dlpack_device,
    "to": _to,
    "cpu": _cpu,
    "type_as": _type_as,
    "copy_": _copy_,
    "numpy": _numpy,
    "new": _new,
    "new_tensor": _new_tensor,
    "pin_memory": _pin_memory,
    "record_stream": lambda *_: None,
}
