"""Tensors of the device type "neuron": real ones of torch's spare type, whose storage lies in the CPU's memory.

Every op that torch has no own answer for runs on the CPU, on tensors over the same memory.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any, final

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from . import limits, machine

Tensor = torch.Tensor

aten = torch.ops.aten
_ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_CPU = torch.device("cpu")
_libraries: list[torch.library.Library] = []


@final
class Held:
    """The bytes that are on the device, now and at most."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.lock = threading.RLock()

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.peak = max(self.peak, self.now)


held = Held()


@final
class _Block:
    """The memory of one storage on the device; what is attached to a storage lives as long as it."""

    __slots__ = ("memory", "size")

    def __init__(self, memory: torch.UntypedStorage) -> None:
        size = memory.nbytes()
        if held.now + size > limits.MEMORY:
            raise torch.OutOfMemoryError(
                f"a core has {limits.MEMORY} bytes, {held.now} are held, {size} were asked for"
            )
        self.memory = memory
        self.size = size
        held.add(size)

    def __del__(self) -> None:
        if hasattr(self, "size"):
            held.add(-self.size)


# A tensor of the spare type with an index other than 0 can be had from Python by way of DLPack alone.


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_EXTENSION_DEVICE = 12
_kept: list[object] = []
_templates: dict[tuple[int, torch.dtype], Tensor] = {}


def _template(index: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor without elements, of that dtype on that device."""
    found = _templates.get((index, dtype))
    if found is None:
        memory = ctypes.create_string_buffer(64)
        shape, strides = (ctypes.c_int64 * 1)(0), (ctypes.c_int64 * 1)(1)
        described = _DLTensor(ctypes.addressof(memory), _EXTENSION_DEVICE, index, 1, 1, 8, 1, shape, strides, 0)
        managed = _DLManagedTensor(described, None, None)
        _kept.extend((memory, shape, strides, managed))
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        flat = torch._C._from_dlpack(make(ctypes.addressof(managed), b"dltensor", None))
        found = _templates[index, dtype] = aten.view.dtype.redispatch(_ON_CPU, flat, dtype)
    return found


def on_device(tensor: Tensor, index: int) -> Tensor:
    """Return a tensor on the device over the memory of `tensor`, which is on the CPU."""
    machine.touch()
    machine.checked(index)
    if (narrow := limits.ROUNDED.get(tensor.dtype)) is not None:
        tensor.copy_(tensor.to(narrow))
    elif tensor.dtype not in limits.DTYPES:
        raise RuntimeError(f"neuron devices have no tensors of {tensor.dtype}")
    memory = tensor.untyped_storage()
    device = torch.device("neuron", index)
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), device, memory.nbytes())
    storage._block = _Block(memory)
    made = aten.as_strided.default.redispatch(_ON_CPU, _template(index, tensor.dtype), (0,), (1,), 0)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    aten.set_.source_Storage_storage_offset.redispatch(_ON_CPU, made, storage, *place)
    return made


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU over the memory of `tensor`; itself if it is there."""
    if tensor.device.type != "neuron":
        return tensor
    block = getattr(tensor.untyped_storage(), "_block", None)
    made = torch.empty(0, dtype=tensor.dtype, device=_CPU)
    if block is None:  # a tensor without elements, made by torch's C++
        return made.view(tensor.shape)
    return made.set_(block.memory, tensor.storage_offset(), tensor.shape, tensor.stride())


_WITH_CPU = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_copy_from", "_to_copy", "resize_as_"))
"""Ops that take tensors on the CPU beside those on a device, as on any accelerator."""


@final
class _Translation:
    """The tensors of one op, over the same memory on the CPU."""

    def __init__(self) -> None:
        self.index = -1
        self.has_stranger = False
        self._originals: dict[int, tuple[Tensor, Tensor]] = {}

    def there(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "neuron":
            self.index = tensor.device.index
            made = on_cpu(tensor)
            self._originals[id(made)] = (tensor, made)
            return made
        self.has_stranger = self.has_stranger or (tensor.dim() > 0 and tensor.device.type == "cpu")
        return tensor

    def back(self, tensor: Tensor) -> Tensor:
        if (found := self._originals.get(id(tensor))) is None:
            return on_device(tensor, self.index)
        original, made = found
        if made.shape != original.shape:  # an out= that was resized
            _adopt(original, made)
        return original


def _adopt(original: Tensor, made: Tensor) -> None:
    """Let `original` be where `made`, on the CPU, is."""
    again = on_device(made, original.device.index)
    place = made.storage_offset(), made.shape, made.stride()
    aten.set_.source_Storage_storage_offset.redispatch(_ON_CPU, original, again.untyped_storage(), *place)


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an op on the CPU."""
    translation = _Translation()
    args, kwargs = _numbers_as_tensors(op, args, kwargs)
    args, kwargs = tree_map_only(Tensor, translation.there, (args, kwargs))
    if (given := kwargs.get("device")) is not None and given.type == "neuron":
        kwargs["device"] = _CPU
        translation.index = _index(given)
    if translation.index < 0:
        translation.index = machine.current_device()
    if translation.has_stranger and op._schema.name.partition("::")[2] not in _WITH_CPU:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"neuron:{translation.index} and cpu! (when checking the arguments of {op})"
        )
    if given is not None and given.type == "cpu":
        return op(*args, **kwargs)
    return tree_map_only(Tensor, translation.back, op(*args, **kwargs))


def _numbers_as_tensors(op: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return an op's arguments with tensors where it is declared to take some: torch hands over numbers as numbers."""
    kinds = {argument.name: str(argument.type) for argument in op._schema.arguments}
    is_real = any(isinstance(value, Tensor) and value.is_floating_point() for value in args)

    def made(kind: str, value: Any) -> Any:
        if kind != "Tensor" or not isinstance(value, (bool, int, float)):
            return value
        return torch.tensor(value, dtype=torch.float64 if is_real else None, device=_CPU)

    args = tuple(made(kind, value) for kind, value in zip(kinds.values(), args, strict=False))
    return args, {name: made(kinds[name], value) for name, value in kwargs.items()}


def _index(device: torch.device | None) -> int:
    return machine.current_device() if device is None or device.index is None else device.index


def _empty(
    size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    format = torch.contiguous_format if memory_format is None else memory_format
    return on_device(torch.empty(size, dtype=dtype, device=_CPU, memory_format=format), _index(device))


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    return on_device(torch.empty_strided(size, stride, dtype=dtype, device=_CPU), _index(device))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    narrow = limits.ROUNDED.get(target.dtype) if target.device.type == "neuron" else None
    on_cpu(target).copy_(on_cpu(source) if narrow is None else on_cpu(source).to(narrow))
    return target


def _resize_(tensor: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    made = on_cpu(tensor).resize_(size)
    _adopt(tensor, made)
    return tensor


_BY_SHAPE = (
    *("as_strided", "view", "view.dtype", "_reshape_alias", "unfold"),
    *("set_.source_Storage_storage_offset", "set_.source_Storage", "set_.source_Tensor"),
)
"""Ops that look at a tensor's shape and not at its memory: the CPU's do for any device."""

_OWN: dict[str, Callable[..., Any]] = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_copy_from": _copy_from,
    "_copy_from_and_resize": _copy_from,
    "resize_": _resize_,
    "_local_scalar_dense": lambda tensor: aten._local_scalar_dense(on_cpu(tensor)),
    "record_stream": lambda tensor, stream: None,
}


def _by_shape(name: str) -> Callable[..., Any]:
    op = getattr(aten, name.partition(".")[0])
    overload = getattr(op, name.partition(".")[2] or "default")
    return lambda *args, **kwargs: overload.redispatch(_ON_CPU, *args, **kwargs)


def register(module: Any) -> None:
    """Tell torch of the device type, its module and its ops."""
    _setup_privateuseone_for_python_backend("neuron", module)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_fallback, "PrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    for name in _BY_SHAPE:
        library.impl(name, _by_shape(name), "PrivateUse1")
    for name, function in _OWN.items():
        library.impl(name, function, "PrivateUse1")
    _libraries.extend((everything, library))
    torch.UntypedStorage.resize_ = _resizing(torch.UntypedStorage.resize_)
    for owner, names in ((Tensor, ("to", "neuron")), (torch, ("tensor", "as_tensor", "asarray"))):
        for name in names:
            setattr(owner, name, _with_index(getattr(owner, name)))


def _resizing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what resizes storages: one on the device keeps its memory, and no size 0 but bits that nobody can use."""

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        block = getattr(storage, "_block", None)
        if block is None:
            return original(storage, size)
        if size not in (0, storage.nbytes()):
            raise NotImplementedError("the stand-in has no storage that grows")
        torch.empty(0, dtype=torch.uint8, device=_CPU).set_(block.memory).fill_(0xFF)
        return storage

    return resize_


def _with_index(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `original`, to which a device without an index means the current one.

    To torch's C++ it would mean device 0: its guard for devices that are written in Python knows no other.
    """

    def meant(value: Any) -> Any:
        if isinstance(value, (str, torch.device)) and str(value) == "neuron":
            return torch.device("neuron", machine.current_device())
        return value

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = meant(kwargs["device"])
        if len(args) > 1:
            args = (args[0], *map(meant, args[1:]))
        return original(*args, **kwargs)

    return function
