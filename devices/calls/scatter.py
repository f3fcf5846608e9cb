"""How `scatter` tells the ranks that have no input what is coming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from devices._capture import is_capturing
from devices.algorithms.observed import AnyVerbs
from devices.calls.groups import GroupLike, own_verbs
from devices.calls.packing import Tensor, Tensors
from devices.calls.verb import Verb
from devices.errors import ArgumentError, DevicesError

_FRAME = 1024
"""Bytes of the first message. A description that does not fit is sent in a second one."""


def start_scatter(
    x: Tensors | None, group: GroupLike, src: int, dim: int, sizes: Sequence[int] | None, out: Tensors | None
) -> Verb:
    """Return the verb over `src`'s tensors: themselves there, tensors of their shapes elsewhere.

    Bad input on `src` is an error on every rank, for all are waiting for the description.
    """

    def ready(verb: Verb) -> Verb:
        return verb.parts(dim, verb.split(sizes), root=verb.check_rank("src", src))

    if torch.compiler.is_compiling():
        if x is None:
            raise ArgumentError("scatter: under torch.compile every rank passes a tensor of src's shape; got None")
        return ready(Verb("scatter", x, group))
    verbs = own_verbs(group)
    rank, size = verbs.group.rank, verbs.group.size
    if is_capturing(verbs.group.device.type):
        # To hear of the shapes the host would wait for the device.
        if x is None:
            raise ArgumentError(
                f"scatter on rank {rank} of {size}: in a graph that is captured every rank passes a tensor of src's "
                "shape; got None"
            )
        return ready(Verb("scatter", x, group))
    who = f"scatter on rank {rank} of {size}"
    if not isinstance(src, int) or not 0 <= src < size:
        raise ArgumentError(f"{who}: src={src!r}, but the group's ranks are 0 to {size - 1}")
    if rank != src:
        found = _share(verbs, None, src)
        if "error" in found:
            raise ArgumentError(f"{who}: it failed on rank {src}, whose tensors it scatters: {found['error']}")
        return ready(Verb("scatter", _described(found, verbs), group))
    try:
        if x is None:
            raise ArgumentError(f"{who}: x is None on src={src}, which is to give it")
        verb = ready(Verb("scatter", x, group))
        if out is not None:
            verb.check_out(out)
    except DevicesError as error:
        _share(verbs, {"error": str(error)}, src)
        raise
    _share(verbs, _description(x, verb, verbs), src)
    return verb


def _description(x: Tensors, verb: Verb, verbs: AnyVerbs) -> dict[str, Any]:
    return {
        "keys": list(x) if isinstance(x, Mapping) else None,
        "container": type(x).__name__ if isinstance(x, (list, tuple)) else None,
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in verb.tensors],
        # The ranks of a group may have devices of several types: what is on its rank's own is on each rank's own.
        "device": None if verb.tensors[0].device.type == verbs.group.device.type else verb.tensors[0].device.type,
        "requires_grad": [torch.is_grad_enabled() and tensor.requires_grad for tensor in verb.tensors],
    }


def _described(found: dict[str, Any], verbs: AnyVerbs) -> Tensors:
    """Return tensors of the described shapes that take no memory, for nothing of them is read."""
    device = verbs.group.device
    own = torch.device(device.type) if device.type == "cpu" else torch.device(device.type, device.index)
    where = own if found["device"] is None else torch.device(found["device"])
    tensors = []
    for (name, shape), requires_grad in zip(found["tensors"], found["requires_grad"], strict=True):
        blank = torch.zeros(1, dtype=getattr(torch, name), device=where).requires_grad_(requires_grad)
        tensors.append(blank.view(()).expand(shape))
    if found["keys"] is not None:
        in_order = dict(zip(sorted(found["keys"], key=str), tensors, strict=True))
        return {key: in_order[key] for key in found["keys"]}
    if found["container"] is not None:
        return tuple(tensors) if found["container"] == "tuple" else tensors
    return tensors[0]


def _share(verbs: AnyVerbs, value: dict[str, Any] | None, src: int) -> dict[str, Any]:
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


def _broadcast(verbs: AnyVerbs, data: bytes, src: int) -> bytes:
    kind, index = verbs.group.device.type, verbs.group.device.index
    tensor: Tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    there = tensor if kind == "cpu" else tensor.to(torch.device(kind, index))
    verbs.broadcast(there, src, within="scatter")
    return there.cpu().numpy().tobytes()
