"""`torch.Generator` where tensors seem to be on a device."""

from __future__ import annotations

from typing import Any, final
from weakref import WeakValueDictionary

import torch

from devices import _torch
from devices.testing._device_here import here

_generators: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Those that seem to be on a device; an op gets the same generator, but another object."""


def device_of_generator(generator: Any) -> torch.device:
    """Return where a generator seems to be."""
    device: torch.device = _generators.get(_torch.generator_key(generator), generator).device
    return device


@final
class _AnyGenerator(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Generator)


_Generator = torch.Generator


class Generator(_Generator, metaclass=_AnyGenerator):
    """`torch.Generator`, also for an emulated device: one of the CPU's that says that it is elsewhere."""

    def __new__(cls, device: Any = "cpu") -> Any:
        found = here()
        meant = found.meant(device) if found is not None else torch.device(device)
        if found is None or meant.type != found.type:
            return _Generator(device=device)
        made: Any = _Generator.__new__(cls, "cpu")  # type: ignore[call-arg]
        made.seems_on = meant
        _generators[_torch.generator_key(made)] = made
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        seems_on: torch.device = vars(self)["seems_on"]
        return seems_on
