"""Whether two results are the same, bit for bit, and where they are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def difference(first: object, second: object, where: str = "") -> str | None:
    """Return where and how two results differ, in words; None if they do not, or if nobody can tell.

    >>> difference({"loss": [1.0, 2.0]}, {"loss": [1.0, 3.0]})
    " at ['loss'][1]: 2.0 and 3.0"
    """
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return _said(where, f"{tuple(first.shape)} {first.dtype}", f"{tuple(second.shape)} {second.dtype}")
        alike = torch.equal(first, second) or torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))
        return None if alike else _said(where, first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return _said(where, sorted(map(str, first)), sorted(map(str, second)))
        return next((said for key in first if (said := difference(first[key], second[key], f"{where}[{key!r}]"))), None)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return _said(where, f"{len(first)} items", f"{len(second)} items")
        pairs = enumerate(zip(first, second, strict=True))
        return next((said for i, (a, b) in pairs if (said := difference(a, b, f"{where}[{i}]"))), None)
    if isinstance(first, (str, bytes, int, float, complex, bool)) and first == first and first != second:
        return _said(where, first, second)
    return None


def _said(where: str, first: object, second: object) -> str:
    return f" at {where}: {first} and {second}" if where else f": {first} and {second}"
