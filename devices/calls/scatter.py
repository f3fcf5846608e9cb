"""`scatter`, which tells the ranks that have no input what is coming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from devices._capture import is_capturing
from devices.algorithms.observed import AnyVerbs
from devices.calls.groups import GroupLike, own_verbs
from devices.calls.packing import Tensor, Tensors
from devices.calls.quick import flat, is_plain, result_like
from devices.calls.verb import Verb
from devices.errors import ArgumentError, DevicesError

_FRAME = 1024
"""Bytes of the first message. A description that does not fit is sent in a second one."""


def scatter(
    x: Any,
    group: GroupLike,
    src: int,
    dim: int,
    sizes: Sequence[int] | None,
    out: Tensors | None,
    async_op: bool,
) -> Any:
    """Do the verb over `src`'s tensors: themselves there, tensors of their shapes elsewhere.

    Bad input on `src` is an error on every rank, for all are waiting for the description.
    """

    def run(x: Tensors) -> Any:
        return ready(x).run(out, async_op)

    def ready(x: Tensors) -> Verb:
        verb = Verb("scatter", x, group)
        return verb.parts(dim, verb.split(sizes), root=verb.check_rank("src", src))

    if torch.compiler.is_compiling():
        if x is None:
            raise ArgumentError("scatter: under torch.compile every rank passes a tensor of src's shape; got None")
        return run(x)
    verbs = own_verbs(group)
    rank, size = verbs.group.rank, verbs.group.size
    if is_capturing(verbs.group.device.type):
        # To hear of the shapes the host would wait for the device.
        if x is None:
            raise ArgumentError(
                f"scatter on rank {rank} of {size}: in a graph that is captured every rank passes a tensor of src's "
                "shape; got None"
            )
        return run(x)
    who = f"scatter on rank {rank} of {size}"
    if not isinstance(src, int) or not 0 <= src < size:
        raise ArgumentError(f"{who}: src={src!r}, but the group's ranks are 0 to {size - 1}")
    is_common = dim == 0 and sizes is None and not async_op
    if rank != src:
        found = _hear(verbs, src)
        if isinstance(found, dict):
            if "error" in found:
                raise ArgumentError(f"{who}: it failed on rank {src}, whose tensors it scatters: {found['error']}")
            described = _described(found, verbs)
            _check_dim(who, dim, src, found["dim"], found["tensors"])
            return run(described)
        whole = _blank(found, _own_device(verbs))
        _check_dim(who, dim, src, 0, [[found[0], found[1:]]])
        if is_common and (part := result_like(whole, _part(whole.shape, size), out)) is not None:
            verbs.scatter(flat(part), None, src)
            return part
        return run(whole)
    if is_common and is_plain(x) and x.device.type == verbs.group.device.type and x.shape[0] % size == 0:
        part = result_like(x, _part(x.shape, size), out)
        if part is not None:
            _tell(verbs, " ".join(map(str, (str(x.dtype).removeprefix("torch."), *x.shape))), src)
            verbs.scatter(flat(part), flat(x), src)
            return part
    try:
        if x is None:
            raise ArgumentError(f"{who}: x is None on src={src}, which is to give it")
        verb = ready(x)
        if out is not None:
            verb.check_out(out)
    except Exception as error:
        said = str(error) if isinstance(error, DevicesError) else f"{type(error).__name__}: {error}"
        _tell(verbs, json.dumps({"error": said}), src)
        raise
    _tell(verbs, json.dumps({"dim": dim, **_description(x, verb, verbs)}), src)
    return verb.run(out, async_op)


def _check_dim(who: str, dim: int, src: int, told: int, tensors: Sequence[Any]) -> None:
    """Require the same dim as `src` has, of tensors given by dtype and shape: -1 may be the same as 1."""
    if isinstance(dim, int) and any((dim - told) % max(len(shape), 1) for _, shape in tensors):
        raise ArgumentError(f"{who}: dim={dim}, but rank {src}, whose tensors it scatters, has dim={told}")


def _part(shape: Sequence[int], size: int) -> tuple[int, ...]:
    return shape[0] // size, *shape[1:]


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
    where = _own_device(verbs) if found["device"] is None else torch.device(found["device"])
    tensors = [
        _blank((name, *shape), where).requires_grad_(requires_grad)
        for (name, shape), requires_grad in zip(found["tensors"], found["requires_grad"], strict=True)
    ]
    if found["keys"] is not None:
        in_order = dict(zip(sorted(found["keys"], key=str), tensors, strict=True))
        return {key: in_order[key] for key in found["keys"]}
    if found["container"] is not None:
        return tuple(tensors) if found["container"] == "tuple" else tensors
    return tensors[0]


def _own_device(verbs: AnyVerbs) -> torch.device:
    device = verbs.group.device
    return torch.device(device.type) if device.type == "cpu" else torch.device(device.type, device.index)


def _blank(described: Sequence[Any], device: torch.device) -> Tensor:
    """Return a tensor of a dtype, by its name, and a shape that takes no memory, for nothing of it is read."""
    name, *shape = described
    return torch.zeros(1, dtype=getattr(torch, name), device=device).view(()).expand(shape)


def _tell(verbs: AnyVerbs, text: str, src: int) -> None:
    """Give `text` to all ranks, each of which hears it."""
    data = text.encode()
    data = len(data).to_bytes(8, "little") + data
    _broadcast(verbs, bytearray(data[:_FRAME].ljust(_FRAME, b"\0")), src)
    if len(data) > _FRAME:
        _broadcast(verbs, bytearray(data[_FRAME:]), src)


def _hear(verbs: AnyVerbs, src: int) -> dict[str, Any] | list[Any]:
    """Return what `src` tells: of one plain tensor its dtype and shape, of all else what its JSON holds."""
    frame = _broadcast(verbs, bytearray(_FRAME), src)
    end = 8 + int.from_bytes(frame[:8], "little")
    if end > _FRAME:
        frame += _broadcast(verbs, bytearray(end - _FRAME), src)
    text = frame[8:end].decode()
    if text[0] == "{":
        found: dict[str, Any] = json.loads(text)
        return found
    name, *shape = text.split(" ")
    return [name, *map(int, shape)]


def _broadcast(verbs: AnyVerbs, data: bytearray, src: int) -> bytearray:
    device = _own_device(verbs)
    tensor: Tensor = torch.frombuffer(data, dtype=torch.uint8)
    if device.type == "cpu":
        verbs.broadcast(tensor, src, within="scatter")
        return data
    there = tensor.to(device)
    verbs.broadcast(there, src, within="scatter")
    return bytearray(there.cpu().numpy())
