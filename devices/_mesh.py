"""The arithmetic of mesh axes; it needs no process group."""

from __future__ import annotations

import math
from collections.abc import Mapping

from devices.errors import MeshError


def mesh_shape(axes: Mapping[str, int], size: int) -> tuple[int, ...]:
    """Return the length of each axis, the one given as -1 filled in, for a world of `size` ranks.

    >>> mesh_shape({"dp": 2, "tp": -1}, 8)
    (2, 4)
    """
    if not isinstance(axes, Mapping):
        raise MeshError(f"axes have names and lengths, as {{'dp': -1, 'tp': 2}} has; got {axes!r}")
    asked = ", ".join(f"{name}={length}" for name, length in axes.items())
    if not axes:
        raise MeshError("a mesh needs at least one axis, for instance {'dp': -1}")
    for name, length in axes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise MeshError(f"an axis is named by a word, for instance 'dp'; got {name!r}")
        if not isinstance(length, int) or isinstance(length, bool) or (length < 1 and length != -1):
            raise MeshError(f"axis {name!r} must be a positive whole number, or -1 for what is left; got {length!r}")
    open_axes = [name for name, length in axes.items() if length == -1]
    if len(open_axes) > 1:
        raise MeshError(f"one axis may be -1, but {', '.join(open_axes)} are; give all but one a length")
    known = math.prod(length for length in axes.values() if length != -1)
    if size % known if open_axes else known != size:
        verb = "do not divide" if open_axes else "need"
        tail = f"the world's {size} ranks" if open_axes else f"{known} ranks, but the world has {size}"
        start = f"start a multiple of {known} ranks" if open_axes else f"start {known} ranks"
        raise MeshError(f"the axes {asked} {verb} {tail}; use -1 for the axis that may vary, or {start}")
    return tuple(size // known if length == -1 else length for length in axes.values())
