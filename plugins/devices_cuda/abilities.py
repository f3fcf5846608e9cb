"""What a GPU can do: the dtypes of its generation, what NCCL reduces, and what it is linked to."""

from __future__ import annotations

from types import MappingProxyType

from devices import Capabilities, Device, Link
from devices.errors import BackendUnavailableError
from devices_cuda.presence import host, usable

_EVERY = (
    "float64", "float32", "float16", "complex32", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool",
)  # fmt: skip

_FROM = (
    ((8, 0), ("bfloat16",)),
    ((8, 9), ("float8_e4m3fn", "float8_e5m2")),
    ((10, 0), ("float8_e8m0fnu",)),
)
"""The compute capability from which on a GPU computes with a dtype."""


def dtypes_of(capability: tuple[int, int] | None) -> tuple[str, ...]:
    """Return the names of the dtypes that a GPU of a compute capability has; only what all have, if it is not known."""
    more = (names for least, names in _FROM if capability is not None and capability >= least)
    return (*_EVERY, *(name for names in more for name in names))


def capabilities_of(capability: tuple[int, int] | None, links: tuple[Link, ...] = ()) -> Capabilities:
    """Return what a GPU of a compute capability can do."""
    import torch

    from devices import ProcessGroupCommunicator

    dtypes = frozenset(getattr(torch, name) for name in dtypes_of(capability))
    reductions = {op: some & dtypes for op, some in ProcessGroupCommunicator.reductions_of("nccl").items()}
    return Capabilities(dtypes=dtypes, reductions=MappingProxyType(reductions), links=links)


def capabilities(device: Device) -> Capabilities:
    """Return what a GPU of this host can do."""
    seen = usable(host(), None).seen
    if not 0 <= device.index < len(seen):
        raise BackendUnavailableError(f"there is no {device}; this process sees {len(seen)} GPUs")
    return capabilities_of(seen[device.index].gpu.capability)
