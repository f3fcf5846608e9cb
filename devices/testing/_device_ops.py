"""What becomes of each op where tensors seem to be on a device: one whose tensors are not together is refused.

All others run on the CPU, and their results are marked to be where the operands are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch

from devices import _torch
from devices.testing._device_generator import device_of_generator
from devices.testing._device_here import CPU, Here, here, set_here
from devices.testing._device_marks import UNDECIDED, Place, on, put, resized, storage_of

Tensor = torch.Tensor

_OWNER_DECIDES = frozenset(
    (
        # Copies between devices.
        *("copy_", "_to_copy", "_copy_from", "copy", "set_"),
        # What these take beside their first tensor may be on the CPU: lengths, sizes.
        *("_pack_padded_sequence", "tensor_split", "_ctc_loss"),
    )
)
"""Ops that go by the device of their first tensor."""

_BY_INDEX = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"))
"""Ops whose indices may also be on the CPU."""


_facts: dict[Any, _torch.OpFacts] = {}


@final
class _Operands:
    """The tensors that one op was given, as they are found one by one."""

    __slots__ = ("fresh", "has_cpu", "place", "second")

    def __init__(self) -> None:
        self.place: Place | None = None
        self.second: Place | None = None
        self.has_cpu = False
        self.fresh: list[Any] = []

    def add(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        where = on(storage)
        if where is None:
            # Scalars on the CPU go with everything.
            if not self.has_cpu and tensor.dim() and tensor.device.type == "cpu":
                self.has_cpu = True
        elif where is UNDECIDED:
            self.fresh.append(storage)
        elif self.place is None:
            self.place = where
        elif self.place is not where:
            self.second = where

    def add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self.add(value)
            elif isinstance(value, (list, tuple)):
                self.add_all(value)

    def settle(self, name: str) -> Place | None:
        """Return where the result is, having decided what was not."""
        place = self.place
        if place is not None and (self.has_cpu or self.second is not None):
            raise mixed(name, place, self.second)
        if self.fresh:
            if place is not None or self.has_cpu:
                for storage in self.fresh:
                    put(storage, place)
            else:
                place = UNDECIDED
        return place


def mixed(name: str, place: Place, second: Place | None) -> RuntimeError:
    """Return what torch says to an op on tensors of several devices."""
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{place} and {second or 'cpu'}! (when checking the arguments of {name})"
    )


@final
class DeviceOps:
    """Does the ops of one thread.

    Args:
        seen: what the thread sees.
    """

    def __init__(self, seen: Here) -> None:
        self._here = seen

    def __call__(self, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if here() is None:
            return op(*args, **kwargs)
        for kind in types:
            if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
                # A tensor that wraps others, a DTensor say: its own code calls ops on those. One that only pretends
                # to be there belongs to a mode beneath this one.
                return op(*args, **kwargs) if _torch.is_pretending() else NotImplemented
        facts = _facts.get(op)
        if facts is None:
            facts = _facts[op] = _torch.OpFacts(op)
        if facts.takes_device and _torch.is_pretending():
            device = kwargs.get("device")
            if device is not None and device.type == self._here.type and device.index is None:
                # Torch remembers, for all ranks at once, on which device the current one of a rank was.
                kwargs = {**kwargs, "device": self._here.place.device}
            return op(*args, **kwargs)
        set_here(None)
        try:
            if facts.takes_device:
                return self._with_device(op, facts, args, kwargs)
            if facts.is_per_element:
                return self._per_element(op, facts, args, kwargs)
            return self._run(op, facts, args, kwargs, self._place(facts, args, kwargs))
        finally:
            set_here(self._here)

    def _place(self, facts: _torch.OpFacts, args: Any, kwargs: Any) -> Place | None:
        """Return where the op's result is.

        Raises:
            RuntimeError: its tensors are on several devices.
        """
        name, operands = facts.name, _Operands()
        if name in _OWNER_DECIDES:
            operands.add(args[0])
            if operands.fresh and name == "copy_":
                operands.add(args[1])
            return operands.settle(name)
        operands.add_all(args)
        if kwargs:
            operands.add_all(kwargs.values())
        if operands.has_cpu and operands.place is not None and name in _BY_INDEX:
            others = _Operands()
            others.add_all((args[0], *args[2:], *kwargs.values()))
            if others.place is not None:
                operands = others
        return operands.settle(name)

    def _run(self, op: Any, facts: _torch.OpFacts, args: Any, kwargs: Any, place: Place | None) -> Any:
        if facts.is_random and place is not UNDECIDED:
            result = self._drawn(op, args, kwargs, place)
        else:
            result = op(*args, **kwargs)
        if place is not None:
            if facts.name == "_pack_padded_sequence":
                # The lengths, which it returns as well, stay on the CPU.
                _mark(result[0], place)
            elif facts.is_new:
                _mark(result, place)
            elif facts.name == "set_" and place is not UNDECIDED:
                # A copy of the tensor in the making: it was given memory that nothing was known of.
                _mark(args[0], place)
            elif facts.name == "resize_":
                resized(storage_of(args[0]))
        return result

    def _drawn(self, op: Any, args: Any, kwargs: Any, place: Place | None) -> Any:
        """Run an op that draws random numbers, from the generator of the device that the result is on."""
        generator, wanted = kwargs.get("generator"), CPU if place is None else place.device
        if generator is not None and (found := device_of_generator(generator).type) != wanted.type:
            raise RuntimeError(f"Expected a '{wanted.type}' device type for generator but found '{found}'")
        if generator is not None or place is None:
            return op(*args, **kwargs)
        with self._here.drawing(place.device.index):
            result = op(*args, **kwargs)
        self._here.drawn(place.device.index, result.numel() if isinstance(result, Tensor) else 4)
        return result

    def _with_device(self, op: Any, facts: _torch.OpFacts, args: Any, kwargs: Any) -> Any:
        """Run an op that takes a device, which is the CPU in truth."""
        seen = self._here
        device = kwargs.get("device")
        if any(isinstance(value, torch.device) for value in args):
            # An op of someone's own; its device is where its tensors are.
            args = [CPU if isinstance(value, torch.device) and value.type == seen.type else value for value in args]
        if device is None:
            place = self._place(facts, args, kwargs)
            if place is None and not _has_tensors(args):
                place = UNDECIDED
        elif device.type == seen.type:
            place, kwargs = seen.place_of(device), {**kwargs, "device": CPU}
        elif device.type != "cpu":
            return op(*args, **kwargs)
        elif "pin_memory" in kwargs:
            # Torch's Python functions always say whether memory is to be pinned, so the program said where.
            place = None
        else:
            # Torch's C++ hands on the device of some tensor that it has, and that is always the CPU.
            place = self._place(facts, args, kwargs) or UNDECIDED
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return self._run(op, facts, args, kwargs, place)

    def _per_element(self, op: Any, facts: _torch.OpFacts, args: Any, kwargs: Any) -> Any:
        """Run an op on lists, whose elements may each be elsewhere."""
        values = (*args, *kwargs.values())
        lists = [
            value for value in values if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)
        ]
        alone = [value for value in values if isinstance(value, Tensor)]
        places = []
        for element in range(max(map(len, lists), default=0)):
            operands = _Operands()
            operands.add_all(each[element] for each in lists if element < len(each))
            operands.add_all(alone)
            places.append(operands.settle(facts.name))
        result = op(*args, **kwargs)
        if facts.is_new and isinstance(result, (list, tuple)):
            for each, place in zip(result, places, strict=False):
                if place is not None:
                    _mark(each, place)
        return result


def _has_tensors(values: Iterable[Any]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and _has_tensors(value)) for value in values
    )


def _mark(result: Any, place: Place) -> None:
    if isinstance(result, Tensor):
        storage = storage_of(result)
        if on(storage) in (None, UNDECIDED):
            put(storage, place)
    elif isinstance(result, (list, tuple)):
        for each in result:
            _mark(each, place)
