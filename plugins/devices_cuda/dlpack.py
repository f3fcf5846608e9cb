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
    # Without a deleter: whoever has the memory gives it back.
    _fields_: ClassVar[Any] = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

_made: dict[tuple[int, int, torch.device], tuple[torch.Tensor, object]] = {}
"""By address, length and device: the tensor, and what torch reads of it for as long as a tensor over it is there."""


def tensor_at(address: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Return so many bytes at an address as a flat tensor of dtype uint8 on a device, which has or reaches them."""
    key = address, nbytes, device
    if key not in _made:
        shape = (ctypes.c_int64 * 1)(nbytes)
        kind = _Device(_CUDA if device.type == "cuda" else _CPU, device.index or 0)
        inner = _Tensor(address, kind, 1, _Type(_UNSIGNED, 8, 1), shape, None, 0)
        managed = _Managed(inner, None, None)
        tensor = from_dlpack(_new_capsule(ctypes.addressof(managed), b"dltensor", None))
        _made[key] = tensor, (managed, shape)
    return _made[key][0]
