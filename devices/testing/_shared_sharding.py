"""How an op on DTensors is sharded, worked out by one thread rank for all: that is most of what DTensor costs.

torch remembers it, but for each thread apart, so that each of many thread ranks would work out the same again. The
ranks of a mesh have to come to the same placements, for else they would call different collectives; so what one of
them has found holds for the others too, each with its own mesh put in.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, final

from devices import _torch

_METHOD = "propagate_op_sharding_non_cached"

_OF_TORCH = "torch.distributed.tensor._ops."
"""Where torch's own strategies are. A program's may look at anything, the rank included."""


@contextlib.contextmanager
def shared_sharding() -> Iterator[None]:
    """Let ranks share, meanwhile, what they work out; where DTensor was not imported before, they do not."""
    dispatcher, _ = _torch._dtensor_globals()
    propagator = getattr(dispatcher, "sharding_propagator", None)
    if not hasattr(propagator, _METHOD):
        yield
        return
    work_out = getattr(propagator, _METHOD)
    setattr(propagator, _METHOD, _Shared(propagator, work_out))
    try:
        yield
    finally:
        setattr(propagator, _METHOD, work_out)


@final
class _Shared:
    """Stands in for a method of torch's propagator, from an op and its arguments to how what it returns is sharded.

    Args:
        propagator: torch's.
        work_out: the method.
    """

    def __init__(self, propagator: Any, work_out: Callable[[Any], Any]) -> None:
        from torch.distributed.tensor import Partial, Replicate, Shard

        self._propagator = propagator
        self._work_out = work_out
        self._known: dict[Hashable, Any] = {}
        # Values and no more; torch has placements that keep what one rank is at.
        self._stateless = (Partial, Replicate, Shard)

    def __call__(self, schema: Any) -> Any:
        strategy = self._strategy(schema.op)
        mesh, *others = [spec.mesh for spec in _specs(schema)] or [None]
        if strategy is None or mesh is None or any(other != mesh for other in others):
            return self._work_out(schema)
        key = schema.op, strategy, mesh.device_type, mesh.shape, mesh.mesh_dim_names, _told(schema)
        try:
            found = self._known.get(key)
        except TypeError:  # an argument that is no key
            return self._work_out(schema)
        if found is not None:
            return _moved(found, mesh)
        found = self._work_out(schema)
        if self._is_shareable(found):
            self._known[key] = found
        return found

    def _strategy(self, op: Any) -> Hashable:
        """Return what of torch's own works out `op`, None if nothing does."""
        for table in ("op_single_dim_strategy_funcs", "op_strategy_funcs"):
            if (found := getattr(self._propagator, table, {}).get(op)) is not None:
                strategy = getattr(found, "func", found)
                return strategy if strategy.__module__.startswith(_OF_TORCH) else None
        return None

    def _is_shareable(self, found: Any) -> bool:
        # The values are sizes of the rank's own part, for an op that takes a shape.
        return not getattr(found, "use_val_from_redistribute_schema", True) and all(
            type(placement) in self._stateless for spec in _specs(found) for placement in spec.placements
        )


# Torch's own kinds, told by what they have: an output sharding and an op schema hold specs, one for each DTensor.


def _specs(value: Any) -> Iterator[Any]:
    if hasattr(value, "placements"):
        yield value
    elif hasattr(value, "args_schema"):
        yield from _specs([value.args_schema, value.kwargs_schema])
    elif hasattr(value, "output_spec"):
        yield from _specs([value.output_spec, value.redistribute_schema])
    elif isinstance(value, dict):
        yield from _specs(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _specs(each)


def _told(value: Any) -> Hashable:
    """Return all that an op schema says, but for the meshes."""
    if hasattr(value, "placements"):
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "mesh")
    if hasattr(value, "args_schema"):
        return _told(value.args_schema), _told(value.kwargs_schema)
    if isinstance(value, dict):
        return tuple((name, _told(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), *map(_told, value)
    # True, 1 and 1.0 are equal, but not the same to an op.
    return type(value), value


def _moved(value: Any, mesh: Any) -> Any:
    """Return an output sharding with `mesh` as that of all DTensors."""
    if hasattr(value, "placements"):
        return dataclasses.replace(value, mesh=mesh)
    for names in (("args_schema", "kwargs_schema"), ("output_spec", "redistribute_schema")):
        if hasattr(value, names[0]):
            return dataclasses.replace(value, **{name: _moved(getattr(value, name), mesh) for name in names})
    if isinstance(value, dict):
        return {name: _moved(each, mesh) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(each, mesh) for each in value)
    return value
