"""How much memory the tensors of a rank take, and what happens when it is more than the device has."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator
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
        self._sizes: dict[int, int] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count the ops of this thread, while this lasts."""
        before = getattr(_here, "memory", None)
        _here.memory = self
        try:
            with _resizes_are_seen(), _torch.watched_ops(self._returned, self._calling):
                yield
        finally:
            _here.memory = before

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
        if type(tensor) is not torch.Tensor or tensor.device.type == "meta":
            return
        if tensor.layout is not torch.strided:
            if tensor.layout is torch.sparse_coo:
                self._count(tensor._indices())
                self._count(tensor._values())
            return
        self.count(*_torch.storage_key(tensor))

    def count(self, storage: torch.UntypedStorage, key: int) -> None:
        """Count a memory as large as it is now, or again if it has another size than before."""
        size, before = storage.nbytes(), self._sizes.get(key, 0)
        if size == before and key in self._known:
            return
        if size > before:
            self._check(size - before)
        self._sizes[key] = size
        self.held += size - before
        self.peak = max(self.peak, self.held)
        if key not in self._known:

            def freed(_: object, key: int = key) -> None:
                self._known.pop(key, None)
                self.held -= self._sizes.pop(key, 0)

            self._known[key] = weakref.ref(storage, freed)

    def _check(self, size: int) -> None:
        if self._limit is not None and self.held + size > self._limit:
            self._refused(size, self.held)


_here = threading.local()


@contextlib.contextmanager
def _resizes_are_seen() -> Iterator[None]:
    """Count what is resized by no op, as FSDP frees and gets back what it has gathered; entered by many threads."""
    global _watching, _before
    kind = torch.UntypedStorage
    with _lock:
        if not _watching:
            _before = vars(kind).get("resize_")
            setattr(kind, "resize_", _counted_resize)  # noqa: B010 - mypy takes it for a method for good
        _watching += 1
    try:
        yield
    finally:
        with _lock:
            _watching -= 1
            if not _watching and _before is None:
                delattr(kind, "resize_")  # its base class has torch's own
            elif not _watching:
                setattr(kind, "resize_", _before)  # noqa: B010


_lock = threading.Lock()
_watching = 0
_before: Any = None
_resize: Any = torch.UntypedStorage.resize_


def _counted_resize(storage: torch.UntypedStorage, size: int) -> Any:
    result = (_before or _resize)(storage, size)
    memory: Memory | None = getattr(_here, "memory", None)
    if memory is not None and storage.device.type != "meta":
        memory.count(storage, _torch.storage_number(storage))
    return result
