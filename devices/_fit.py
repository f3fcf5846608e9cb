"""Picking a device by need, not by name."""

from __future__ import annotations

import re

import torch

from devices import _registry
from devices._backend import Device
from devices.errors import ArgumentError, BackendUnavailableError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def device(*, memory: int | str = 0, dtype: torch.dtype | None = None, backend: str | None = None) -> torch.device:
    """Return one device with enough free memory that has `dtype`: of the best backend, the one with most free.

    Args:
        memory: bytes, or text such as "20 GiB" (2**30 bytes each) or "20 GB" (10**9).
        dtype: a dtype that its tensors must be able to have.
        backend: only of this backend; all that "auto" may choose otherwise.

    Raises:
        BackendUnavailableError: no device fits; the message says what each lacks.

    >>> import torch, devices
    >>> devices.device(memory="1 MiB", dtype=torch.bfloat16, backend="cpu")
    device(type='cpu')
    """
    needed = _bytes(memory)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r} is no torch.dtype; torch.bfloat16 is one")
    names = [backend] if backend is not None else _registry.auto_order()
    reasons: list[str] = []
    for name in names:
        # Of all, one that is broken is only passed over.
        probe = _registry.outcome(name) if backend is None else _registry.probe(name)
        if not probe.present:
            reasons.append(f"{name}: {probe.reason}")
            continue
        fitting: list[tuple[int, Device]] = []
        capabilities = _registry.backend(name).capabilities
        for found in _registry.devices_of(name):
            free = found.free if found.free is not None else found.memory
            if dtype is not None and dtype not in capabilities(found).dtypes:
                reasons.append(f"{found}: has no {dtype}")
            elif free is not None and free < needed:
                reasons.append(f"{found}: {free / 2**30:.1f} GiB free")
            elif free is None and needed:
                reasons.append(f"{found}: its free memory is unknown")
            else:
                fitting.append((free or 0, found))
        if fitting:
            best = max(fitting, key=lambda fit: fit[0])[1]
            return torch.device(best.type) if best.type == "cpu" else torch.device(best.type, best.index)
    size = memory if isinstance(memory, str) else f"{memory} bytes"
    asked = [*([f"{size} free"] if needed else []), *([str(dtype)] if dtype is not None else [])]
    raise BackendUnavailableError(
        f"no device {'has ' if asked else 'is here'}{' and '.join(asked)}:"
        + "".join(f"\n  {reason}" for reason in reasons)
    )


def _bytes(memory: int | str) -> int:
    if isinstance(memory, int) and memory >= 0:
        return memory
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory) if isinstance(memory, str) else None
    if match is None or match[2].upper() not in _UNITS:
        raise ArgumentError(f"memory={memory!r} is no size; give bytes, or text such as '20 GiB' or '20 GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])
