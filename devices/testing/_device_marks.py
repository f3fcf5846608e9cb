"""Marks on memory: all of it is the CPU's, and a mark on a tensor's storage says on which device it counts as being.

A storage is shared by all views of a tensor and by what autograd saves of it, so a mark gets to each of them; and torch
keeps the attributes of a storage's Python object for as long as the memory lives.
"""

from __future__ import annotations

import threading
from typing import Any, final

import torch

_NAME = "devices_mark"


@final
class Held:
    """The bytes that are on one device, now and at most."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        # A mark may be freed at any line, also where another one is being counted.
        self._lock = threading.RLock()

    def add(self, size: int) -> None:
        with self._lock:
            self.now += size
            self.peak = max(self.peak, self.now)


@final
class Place:
    """A device that memory can be marked to be on. There is one for each device, so `is` compares them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held = Held()

    def __repr__(self) -> str:
        return str(self.device)


UNDECIDED = Place(torch.device("cpu"))
"""Where memory is that torch's own C++ has made for itself: with the first tensor that it meets."""

_places: dict[tuple[str, int], Place] = {}


def place(device: torch.device) -> Place:
    """Return the place for `device`, which has an index."""
    key = device.type, device.index
    found = _places.get(key)
    return found if found is not None else _places.setdefault(key, Place(device))


@final
class _Mark:
    """What is attached to a storage."""

    __slots__ = ("place", "size")

    def __init__(self, place: Place, size: int) -> None:
        self.place = place
        self.size = size
        place.held.add(size)

    def __del__(self) -> None:
        self.place.held.add(-self.size)


def storage_of(tensor: torch.Tensor) -> Any:
    """Return the memory that carries the mark of `tensor`; None where it has none that does."""
    try:
        return tensor.untyped_storage()
    except NotImplementedError:
        # A sparse tensor is where its values are; their memory stays with it.
        if tensor.layout is torch.sparse_coo:
            return tensor.detach()._values().untyped_storage()
        if tensor.layout is torch.strided or not hasattr(tensor, "values"):
            return None
        return tensor.detach().values().untyped_storage()


def on(storage: Any) -> Place | None:
    """Return where `storage` is; None is the CPU."""
    mark = getattr(storage, _NAME, None)
    return None if mark is None else mark.place


def put(storage: Any, where: Place | None) -> None:
    """Let `storage`, where there is one, be there from now on."""
    if storage is None:
        return
    if where is None:
        if hasattr(storage, _NAME):
            delattr(storage, _NAME)
    elif on(storage) is not where:
        setattr(storage, _NAME, _Mark(where, storage.nbytes()))


def resized(storage: Any) -> None:
    """Count `storage` anew, after its size has changed."""
    if (mark := getattr(storage, _NAME, None)) is not None:
        mark.place.held.add(storage.nbytes() - mark.size)
        mark.size = storage.nbytes()
