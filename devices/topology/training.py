"""A training step of a described model on a mesh of a target: its time, its memory, its energy and its price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from devices.catalogue import Target
from devices.errors import ArgumentError
from devices.topology.axes import along, apart
from devices.topology.calls import Call, calls_of, turns_of
from devices.topology.chip import EFFICIENCY, STREAMING, USABLE, Rank, rank_of
from devices.topology.estimate import Estimate, Interval, duration
from devices.topology.model import KEPT, STATE, Model, check_mesh, mesh_of

HIDDEN = Interval(0.0, 0.7, 1.0)
"""How much of the time of the backward pass hides the collectives of dp and fsdp: assumed."""

OPTIMIZER = 30.0
"""Bytes that Adam reads and writes for each parameter that a rank keeps."""

TOUCHED = 2.0
"""How often what a layer keeps is written or read again by what is no product of matrices, in the whole step."""


@final
@dataclass(frozen=True, slots=True)
class Run:
    """What a training step, or serving, takes.

    Args:
        target: the name of the target.
        mesh: the length of each axis.
        ranks: how many there are.
        batch: sequences at a time.
        seconds: of a step.
        tokens: tokens a second, of all ranks.
        parts: the expected seconds of each part; those of collectives that are hidden count as far as they are not.
        collectives: for each axis how one of its collectives goes.
        memory: the bytes that a rank needs.
        capacity: the bytes that a rank can have.
        joules: for a million tokens; None where the power is not known.
        price: for a million tokens; None where it is not known.
        speculative: whether it rests on what is announced or assumed of hardware.
        missing: what is not known and would be needed for more.
        doubts: what is not sure.
    """

    target: str
    mesh: Mapping[str, int]
    ranks: int
    batch: int
    seconds: Interval
    tokens: Interval
    parts: Mapping[str, float]
    collectives: Mapping[str, Estimate]
    memory: float
    capacity: float
    joules: Interval | None
    price: Interval | None
    speculative: bool
    missing: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory."""
        return self.memory <= self.capacity

    def __str__(self) -> str:
        mark = ", SPECULATIVE" if self.speculative else ""
        fit = "fits" if self.fits else "DOES NOT FIT"
        held = f"{self.memory / 1e9:.3g} of {self.capacity / 1e9:.3g} GB a rank, {fit}"
        return f"{self.seconds.shown(duration)} on {self.ranks} ranks of {self.target}: {held}{mark}"

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "target": self.target,
            "mesh": {name: length for name, length in self.mesh.items() if length > 1},
            "ranks": self.ranks,
            "batch": self.batch,
            "seconds": self.seconds.as_data(),
            "tokens_per_second": self.tokens.as_data(),
            "parts": dict(self.parts),
            "collectives": {name: found.as_data() for name, found in self.collectives.items()},
            "memory": self.memory,
            "capacity": self.capacity,
            "fits": self.fits,
            "joules_per_million_tokens": self.joules.as_data() if self.joules else None,
            "price_per_million_tokens": self.price.as_data() if self.price else None,
            "speculative": self.speculative,
            "missing": list(self.missing),
            "doubts": list(self.doubts),
        }


def training_step(
    model: Model,
    on: str | Target,
    mesh: Mapping[str, int],
    batch: int,
    *,
    micro_batch: int = 1,
    recompute: str = "attention",
    strides: Mapping[str, int] | None = None,
    watts: float | None = None,
    price: float | None = None,
) -> Run:
    """Return what a training step takes.

    Args:
        model: what is trained.
        on: a target, or its name; further targets of the kind, joined by their network, where ranks do not fit in it.
        mesh: the length of each axis: "dp", "fsdp", "tp", "pp", "ep". The first are the farthest apart.
        batch: sequences of a step, of all ranks together.
        micro_batch: sequences that a rank computes at a time.
        recompute: what the backward pass computes again: "none", "attention" or "all".
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
    if recompute not in KEPT:
        raise ArgumentError(f"`recompute` is one of {', '.join(KEPT)}, not {recompute!r}")
    per_rank, turns = turns_of(axes, batch, micro_batch)
    rank = rank_of(on, model.dtype, watts, price)
    ranks = rank.machine.having(math.prod(axes.values()))
    held = model.parameters_per_rank(axes)
    tokens = per_rank * model.sequence
    computed = _computed(model, axes, tokens, recompute)
    compute = EFFICIENCY.under(computed / rank.flops)
    kept = _kept(model, axes, micro_batch, recompute)
    moved = TOUCHED * turns * kept + OPTIMIZER * held / axes["fsdp"]
    memory_time = STREAMING.under(moved / rank.bandwidth)
    collectives, blocking, hideable = _collectives(
        calls_of(model, axes, turns, micro_batch), rank, axes, apart(axes, strides)
    )
    backward = compute.times(2 / 3)
    exposed = Interval(
        max(0.0, hideable.low - HIDDEN.high * backward.high),
        max(0.0, hideable.expected - HIDDEN.expected * backward.expected),
        hideable.high,
    )
    # A pipeline is empty at both ends for as long as one micro-batch takes on all stages but one.
    bubble = (axes["pp"] - 1) / turns
    busy = (compute + memory_time + blocking).times(1 + bubble)
    seconds = busy + exposed
    parts = {
        "compute": compute.expected,
        "memory": memory_time.expected,
        "collectives": blocking.expected + exposed.expected,
        "bubble": (compute + memory_time + blocking).expected * bubble,
    }
    memory = held * (STATE / axes["fsdp"]) + kept * min(turns, axes["pp"])
    if axes["fsdp"] > 1:
        memory += 2 * model.width * held / (model.layers / axes["pp"])
    return finish(rank, axes, ranks, batch, seconds, batch * model.sequence, parts, collectives, memory)


def finish(
    rank: Rank,
    axes: dict[str, int],
    ranks: int,
    batch: int,
    seconds: Interval,
    tokens: float,
    parts: dict[str, float],
    collectives: dict[str, Estimate],
    memory: float,
) -> Run:
    """Return the run with what follows from its seconds: tokens a second, energy, price."""
    millions = tokens / 1e6
    doubts = [f"{part} is assumed" for part in ("the share of dense FLOPS", "the share of memory bandwidth")]
    for found in collectives.values():
        doubts += found.doubts
    return Run(
        target=rank.target,
        mesh=axes,
        ranks=ranks,
        batch=batch,
        seconds=seconds,
        tokens=seconds.under(tokens),
        parts=parts,
        collectives=collectives,
        memory=memory,
        capacity=rank.memory * USABLE,
        joules=None if rank.watts is None else seconds.times(rank.watts * ranks / millions),
        price=None if rank.price is None else seconds.times(rank.price * ranks / 3600 / millions),
        speculative=rank.speculative,
        missing=rank.missing,
        doubts=tuple(dict.fromkeys(doubts)),
    )


def _computed(model: Model, axes: dict[str, int], tokens: float, recompute: str) -> float:
    """Return the operations of a rank: a backward pass is two forward ones, and what is computed again a third."""
    # A token sees half of its sequence, on average.
    forward = model.flops_per_token(model.sequence / 2)
    attention = forward - 2 * model.computing
    again = {"none": 0.0, "attention": attention, "all": forward}[recompute]
    return tokens * (3 * forward + again) / (axes["tp"] * axes["pp"])


def _kept(model: Model, axes: dict[str, int], micro_batch: int, recompute: str) -> float:
    """Return the bytes of a micro-batch that a rank keeps for the backward pass."""
    each = KEPT[recompute] * model.hidden
    if recompute == "none":
        each += 5 * model.heads * model.sequence
    return each * model.sequence * micro_batch * model.layers / (axes["pp"] * axes["tp"])


def _collectives(
    made: list[Call], rank: Rank, axes: dict[str, int], far: Mapping[str, int]
) -> tuple[dict[str, Estimate], Interval, Interval]:
    """Return a collective of each axis, the seconds that all of them make a step wait, and those that may be hidden."""
    found: dict[str, Estimate] = {}
    blocking = hideable = Interval.exactly(0.0)
    for call in made:
        one = along(call.verb, call.size, rank.machine, axes[call.axis], far[call.axis])
        found.setdefault(call.axis, one)
        if call.waits:
            blocking += one.seconds.times(call.times)
        else:
            hideable += one.seconds.times(call.times)
    return found, blocking, hideable
