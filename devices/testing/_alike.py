"""Whether two results are the same, bit for bit, and where they are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy
import torch

_PLAIN = (str, bytes, int, float, complex, bool, type(None), set, frozenset)


def difference(first: object, second: object, where: str = "") -> str | None:
    """Return where and how two results differ, in words; None if they do not, or if nobody can tell.

    >>> difference({"loss": [1.0, 2.0]}, {"loss": [1.0, 3.0]})
    " at ['loss'][1]: 2.0 and 3.0"
    """
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return _between_tensors(first, second, where)
    if isinstance(first, numpy.ndarray) and isinstance(second, numpy.ndarray) and not first.dtype.hasobject:
        kinds = [(each.shape, each.dtype, each.tobytes()) for each in (first, second)]
        return None if kinds[0] == kinds[1] else _said(where, first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return _said(where, sorted(map(str, first)), sorted(map(str, second)))
        return next((said for key in first if (said := difference(first[key], second[key], f"{where}[{key!r}]"))), None)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return _said(where, f"{len(first)} items", f"{len(second)} items")
        pairs = enumerate(zip(first, second, strict=True))
        return next((said for i, (a, b) in pairs if (said := difference(a, b, f"{where}[{i}]"))), None)
    if type(first) is not type(second):
        return _said(where, first, second)
    if isinstance(first, _PLAIN) and first != second and not (first != first and second != second):
        return _said(where, first, second)
    return None


def _between_tensors(first: torch.Tensor, second: torch.Tensor, where: str) -> str | None:
    if first.shape != second.shape or first.dtype != second.dtype:
        return _said(where, f"{tuple(first.shape)} {first.dtype}", f"{tuple(second.shape)} {second.dtype}")
    # Of a DTensor this rank's part; what is neither dense nor here cannot be compared.
    pair = [each.to_local() if hasattr(each, "to_local") else each for each in (first.detach(), second.detach())]
    if any(each.layout is not torch.strided or each.device.type == "meta" for each in pair):
        return None
    bits = [each.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8) for each in pair]
    return None if torch.equal(*bits) else _said(where, first, second)


def _said(where: str, first: object, second: object) -> str:
    return f" at {where}: {first} and {second}" if where else f": {first} and {second}"
