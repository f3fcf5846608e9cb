"""How much memory the tensors of a rank take, and what happens when it is more than the device has."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

import torch

from devices import _torch

_LARGE = 1 << 24
"""Elements from which on an op that makes a tensor is asked for its size before it is run."""


@final
class Memory:
    """The tensors of one rank, counted as they are made and freed.

    What counts is the memory behind the tensors that the rank's ops return, each once however many tensors view it.

    Args:
        limit: bytes that there are; None for no limit.
        refused: called with the bytes that were asked for and those that are held, when together they are too many.
    """

    def __init__(self, limit: int | None, refused: Callable[[int, int], None]) -> None:
        self.held = 0
        self.peak = 0
        self._limit = limit
        self._refused = refused
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def watched(self) -> AbstractContextManager[None]:
        """Return the context in which the ops of this thread are counted."""
        return _torch.watched_ops(self._returned, self._calling)

    def _calling(self, op: Any, args: Any, kwargs: Any) -> None:
        """Refuse what makes a tensor that is too large, before it takes the machine's memory."""
        if self._limit is None or not args or not isinstance(args[0], (list, tuple)) or "device" not in kwargs:
            return
        if not all(isinstance(size, int) for size in args[0]) or math.prod(args[0]) < _LARGE:
            return
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        self._check(math.prod(args[0]) * dtype.itemsize)

    def _returned(self, op: Any, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self._count(result)
        elif isinstance(result, (list, tuple)):
            for each in result:
                if isinstance(each, torch.Tensor):
                    self._count(each)

    def _count(self, tensor: torch.Tensor) -> None:
        # The parts of a tensor that wraps others are counted when they are made.
        if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or tensor.layout is not torch.strided:
            return
        storage, key = _torch.storage_key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()
        self._check(size)

        def freed(_: object, key: int = key, size: int = size) -> None:
            self._known.pop(key, None)
            self.held -= size

        self._known[key] = weakref.ref(storage, freed)
        self.held += size
        self.peak = max(self.peak, self.held)

    def _check(self, size: int) -> None:
        if self._limit is not None and self.held + size > self._limit:
            self._refused(size, self.held)
