"""Serving a described model: the prefill of prompts, and the tokens that are then decoded one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from devices.catalogue import Target
from devices.errors import ArgumentError
from devices.topology.axes import along, apart
from devices.topology.chip import EFFICIENCY, STREAMING, Rank, rank_of
from devices.topology.estimate import Estimate, Interval
from devices.topology.model import Model, check_mesh, mesh_of
from devices.topology.training import Run, finish


@final
@dataclass(frozen=True, slots=True)
class Service:
    """What serving takes.

    Args:
        prefill: reading the prompts of a batch; its tokens are those of the prompts.
        decode: a token for each sequence of a batch; its tokens are those.
    """

    prefill: Run
    decode: Run

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory for the weights, and for the whole sequences of a batch."""
        return self.decode.fits

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"prefill": self.prefill.as_data(), "decode": self.decode.as_data()}


def serving(
    model: Model,
    on: str | Target,
    mesh: Mapping[str, int],
    batch: int,
    *,
    prompt: int | None = None,
    strides: Mapping[str, int] | None = None,
    watts: float | None = None,
    price: float | None = None,
) -> Service:
    """Return what serving takes: prompts of `prompt` tokens, decoded up to the model's `sequence`.

    Args:
        model: what is served.
        on: a target, or its name.
        mesh: the length of each axis: "dp" for replicas, "tp", "pp" and "ep" for the ranks of one.
        batch: sequences at a time, of all replicas together.
        prompt: tokens of a prompt; half of the sequence if not said.
        strides: how far apart the neighbours of each axis are, as `nest` finds it, if not the first the farthest.
        watts: what a chip takes; the catalogue's figure if not said.
        price: what an hour of a chip costs; the catalogue's figure if not said.

    Raises:
        ArgumentError: the mesh or the batch does not suit the model.
        MeshError: a cluster has fewer ranks, or the axes cannot lie so.
        TopologyError: a figure that is needed is not known.
    """
    axes = mesh_of(dict(mesh))
    check_mesh(model, axes)
    if axes["fsdp"] > 1:
        raise ArgumentError("fsdp spreads what training keeps; for serving use tp, pp and ep")
    # The ranks of ep have sequences of their own.
    per_rank, left = divmod(batch, axes["dp"] * axes["ep"])
    if left or per_rank < 1:
        raise ArgumentError(f"a batch of {batch} is not split evenly over dp x ep = {axes['dp'] * axes['ep']} ranks")
    length = max(1, model.sequence // 2) if prompt is None else prompt
    if not 0 < length <= model.sequence:
        raise ArgumentError(f"a prompt has 1 to {model.sequence} tokens, the model's sequence, got {prompt}")
    rank = rank_of(on, model.dtype, watts, price)
    ranks = rank.machine.having(math.prod(axes.values()))
    share = axes["tp"] * axes["pp"]
    held = model.parameters_per_rank(axes) * model.width
    # Heads of keys and values that are fewer than tp are on several ranks.
    cache = per_rank * model.cache_per_token / (axes["pp"] * min(axes["tp"], model.kv_heads or model.heads))
    memory = held + cache * model.sequence + 4 * per_rank * model.hidden * model.width
    runs = []
    for tokens, context, seen in ((length, length / 2, 0.0), (1, float(model.sequence), cache * model.sequence)):
        computed = per_rank * tokens * model.flops_per_token(context) / share
        compute = EFFICIENCY.under(computed / rank.flops)
        read = STREAMING.under((_weights(model, axes, per_rank * tokens, held) + seen) / rank.bandwidth)
        # Weights stream in while they are multiplied: the slower of the two is what takes the time.
        works = Interval(max(compute.low, read.low), max(compute.expected, read.expected), max(compute.high, read.high))
        found, waits = _collectives(model, axes, rank, per_rank * tokens, apart(axes, strides))
        # Batches follow each other through the stages of a pipeline, so a rank is busy with its share alone.
        seconds = works + waits
        parts = {"compute": compute.expected, "memory": read.expected, "collectives": waits.expected}
        runs.append(finish(rank, axes, ranks, batch, seconds, batch * tokens, parts, found, memory))
    return Service(*runs)


def _weights(model: Model, axes: dict[str, int], tokens: float, held: float) -> float:
    """Return the bytes of weights that a rank reads: of experts those that its tokens meet."""
    if not model.experts:
        return held
    experts = model.experts * model.width / (axes["tp"] * axes["pp"] * axes["ep"])
    met = (model.computing - (model.parameters - model.experts)) * model.width / (axes["tp"] * axes["pp"])
    return held - experts + min(experts, max(met, 0.0) * tokens)


def _collectives(
    model: Model, axes: dict[str, int], rank: Rank, tokens: float, far: Mapping[str, int]
) -> tuple[dict[str, Estimate], Interval]:
    layers = model.layers // axes["pp"]
    size = tokens * model.hidden * model.width
    found: dict[str, Estimate] = {}
    waits = Interval.exactly(0.0)
    if axes["tp"] > 1:
        found["tp"] = along("all_reduce", size, rank.machine, axes["tp"], far["tp"])
        waits += found["tp"].seconds.times(2 * layers)
    if axes["ep"] > 1:
        found["ep"] = along("all_to_all", size * model.choices, rank.machine, axes["ep"], far["ep"])
        waits += found["ep"].seconds.times(2 * layers)
    if axes["pp"] > 1:
        found["pp"] = along("send", size / axes["tp"], rank.machine, axes["pp"], far["pp"])
        waits += found["pp"].seconds
    return found, waits
