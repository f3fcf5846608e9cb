"""The collectives of a training step, and the traffic of each axis that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from devices.errors import ArgumentError
from devices.topology.model import Model, check_mesh, mesh_of


@final
@dataclass(frozen=True, slots=True)
class Call:
    """A collective of a step, of which there are `times`; `waits` says that nothing can hide it."""

    axis: str
    verb: str
    size: float
    times: int
    waits: bool


def calls_of(model: Model, axes: dict[str, int], turns: int, micro_batch: int) -> list[Call]:
    """Return the collectives of a step; those of an axis that are alike once."""
    layers = model.layers // axes["pp"]
    activations = micro_batch * model.sequence * model.hidden * model.width
    layer = model.parameters_per_rank(axes) * model.width / layers
    found = [
        Call("tp", "all_reduce", activations, 4 * layers * turns, True),
        Call("ep", "all_to_all", activations * model.choices, 4 * layers * turns, True),
        Call("pp", "send", activations / axes["tp"], 2 * turns, True),
        Call("fsdp", "all_gather", layer, 2 * layers * turns, False),
        Call("fsdp", "reduce_scatter", layer, layers * turns, False),
        Call("dp", "all_reduce", layer / axes["fsdp"], layers, False),
    ]
    return [call for call in found if axes[call.axis] > 1]


def traffic(model: Model, mesh: Mapping[str, int], batch: int, *, micro_batch: int = 1) -> dict[str, float]:
    """Return the bytes of each axis in a training step, hidden or not, as `layout` and `nest` want them.

    They are those of all-reduces that move as much: another collective moves half as much as one of its size.

    >>> model = Model(parameters=8e9, layers=32, hidden=4096, heads=32, sequence=8192)
    >>> {name: f"{size:.3g}" for name, size in traffic(model, {"dp": 8, "tp": 8}, 64).items()}
    {'dp': '2e+09', 'tp': '6.87e+10'}
    """
    axes = mesh_of(dict(mesh))
    check_mesh(model, axes)
    _, turns = turns_of(axes, batch, micro_batch)
    found = dict.fromkeys(mesh, 0.0)
    for call in calls_of(model, axes, turns, micro_batch):
        found[call.axis] += call.size * call.times * (1.0 if call.verb == "all_reduce" else 0.5)
    return found


def turns_of(axes: dict[str, int], batch: object, micro_batch: object) -> tuple[int, int]:
    """Return how many sequences a rank has, and in how many turns."""
    # Experts are spread over ranks that have other sequences, so `ep` splits the batch too.
    replicas = axes["dp"] * axes["fsdp"] * axes["ep"]
    per_rank, left = divmod(_whole("batch", batch), replicas)
    turns, odd = divmod(per_rank, _whole("micro_batch", micro_batch))
    if left or odd or not turns:
        raise ArgumentError(
            f"a batch of {batch} is not made of micro-batches of {micro_batch} on dp x fsdp x ep = {replicas} ranks"
        )
    return per_rank, turns


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"`{name}` is a whole number of at least 1, got {value!r}")
    return value
