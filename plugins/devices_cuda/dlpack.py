"""A tensor over memory at an address, by DLPack's own structures: torch takes the device that they name for its own."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch.utils.dlpack import from_dlpack

_CPU, _CUDA = 1, 2
"""kDLCPU and kDLCUDA."""

_UNSIGNED = 1
"""kDLUInt."""


class _Device(ctypes.Structure):
    _fields_: ClassVar[Any] = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_: ClassVar[Any] = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_: ClassVar[Any] = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Block(ctypes.Structure):
    """What torch is handed, and the shape that it points to."""

    _fields_: ClassVar[Any] = [("managed", _Managed), ("shape", ctypes.c_int64 * 1)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

_library = ctypes.CDLL(None)
_library.malloc.restype = ctypes.c_void_p
_library.malloc.argtypes = (ctypes.c_size_t,)
_free = ctypes.cast(_library.free, ctypes.c_void_p).value


def tensor_at(address: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Return so many bytes at an address as a flat tensor of dtype uint8 on a device, which has or reaches them.

    Whoever has the memory gives it back. Torch reads the structures once more as the last tensor over it goes, which
    may be when Python has ended: they are of C's own memory, and what deletes them is C's `free`.
    """
    place = _library.malloc(ctypes.sizeof(_Block))
    if place is None:
        raise MemoryError(f"no {ctypes.sizeof(_Block)} bytes for what describes memory to torch")
    kind = _Device(_CUDA if device.type == "cuda" else _CPU, device.index or 0)
    block = _Block.from_address(place)
    block.shape[0] = nbytes
    shape = ctypes.cast(place + _Block.shape.offset, ctypes.POINTER(ctypes.c_int64))
    block.managed = _Managed(_Tensor(address, kind, 1, _Type(_UNSIGNED, 8, 1), shape, None, 0), None, _free)
    tensor: torch.Tensor = from_dlpack(_new_capsule(place, b"dltensor", None))
    return tensor
