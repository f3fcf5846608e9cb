"""How `scatter` tells the ranks that have no input what is coming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from devices import _packing
from devices._groups import GroupLike, own_verbs
from devices._packing import Tensor, Tensors
from devices._verb import Verb
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError, DevicesError

_FRAME = 1024
"""Bytes of the first message. A description that does not fit is sent in a second one."""


def start_scatter(x: Tensors | None, group: GroupLike, src: int, dim: int, sizes: Sequence[int] | None) -> Verb:
    """Return the verb over `src`'s tensors: themselves there, tensors of their shapes elsewhere.

    Bad input on `src` is an error on every rank, for all are waiting for the description.
    """
    if torch.compiler.is_compiling():
        if x is None:
            raise ArgumentError("scatter: under torch.compile every rank passes a tensor of src's shape; got None")
        verb = Verb("scatter", x, group)
        verb.check_rank("src", src)
        return verb
    verbs = own_verbs(group)
    size = verbs.group.size
    if not isinstance(src, int) or not 0 <= src < size:
        raise ArgumentError(f"{verbs.group}: scatter: src={src!r}, but the group's ranks are 0 to {size - 1}")
    if verbs.group.rank != src:
        return _from_description(_share(verbs, None, src), group, verbs, src)
    try:
        if x is None:
            raise ArgumentError(f"{verbs.group}: scatter: x is None on src={src}, which is to give it")
        verb = Verb("scatter", x, group)
        _check(verb, dim, sizes)
    except DevicesError as error:
        _share(verbs, {"error": str(error)}, src)
        raise
    _share(verbs, _description(x), src)
    return verb


def _check(verb: Verb, dim: int, sizes: Sequence[int] | None) -> None:
    checked = verb.check_sizes(sizes) or verb.equal_parts(dim)
    if sum(checked) != verb.length(dim):
        raise verb.error(f"sizes={checked} adds up to {sum(checked)}, but dim {dim} has size {verb.length(dim)}")


def _description(x: Tensors) -> dict[str, Any]:
    tensors, _ = _packing.unwrap(x, "scatter")
    return {
        "keys": list(x) if isinstance(x, Mapping) else None,
        "container": type(x).__name__ if isinstance(x, (list, tuple)) else None,
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors],
        "device": tensors[0].device.type,
        "grad": torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
    }


def _from_description(found: dict[str, Any], group: GroupLike, verbs: Verbs, src: int) -> Verb:
    if "error" in found:
        raise ArgumentError(f"{verbs.group}: scatter failed on its source, rank {src}: {found['error']}")
    device = verbs.group.device
    where = torch.device(device.type, device.index) if device.type == found["device"] != "cpu" else found["device"]
    tensors = []
    for name, shape in found["tensors"]:
        dtype = getattr(torch, name)
        # No memory is taken for what is not read here.
        blank = torch.zeros((), dtype=dtype, device=where)
        can_require = dtype.is_floating_point or dtype.is_complex
        tensors.append(blank.requires_grad_(found["grad"] and can_require).expand(shape))
    x: Tensors = tensors[0]
    if found["keys"] is not None:
        x = dict(zip(found["keys"], tensors, strict=True))
    elif found["container"] is not None:
        x = tuple(tensors) if found["container"] == "tuple" else tensors
    return Verb("scatter", x, group)


def _share(verbs: Verbs, value: dict[str, Any] | None, src: int) -> dict[str, Any]:
    """Return `src`'s `value`, which is JSON, on every rank."""
    data = b"" if value is None else json.dumps(value).encode()
    head = len(data).to_bytes(8, "little") + data
    frame = _broadcast(verbs, head[:_FRAME].ljust(_FRAME, b"\0"), src)
    length = int.from_bytes(frame[:8], "little")
    rest = b""
    if length + 8 > _FRAME:
        rest = _broadcast(verbs, head[_FRAME:] or bytes(length + 8 - _FRAME), src)
    found: dict[str, Any] = json.loads((frame[8:] + rest)[:length])
    return found


def _broadcast(verbs: Verbs, data: bytes, src: int) -> bytes:
    kind, index = verbs.group.device.type, verbs.group.device.index
    tensor: Tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    there = tensor if kind == "cpu" else tensor.to(torch.device(kind, index))
    verbs.broadcast(there, src)
    return bytes(there.cpu().tolist())
