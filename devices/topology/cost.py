"""How long a collective takes: the door to the models of each vendor's collectives, and of our own."""

from __future__ import annotations

import math
from typing import get_args

from devices.catalogue import Target, load
from devices.errors import ArgumentError, did_you_mean
from devices.topology.calibration import Calibration, read_calibration
from devices.topology.estimate import Estimate, Interval, around
from devices.topology.machine import Machine, machine_of
from devices.topology.nccl_cost import nccl_time
from devices.topology.neuron_cost import neuron_time

VERBS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "permute",
    "send",
)
"""The verbs whose time can be asked for."""

On = str | Target | Machine | Calibration
"""What a time is asked for: the name of a target, a target, a machine, or what was measured of this host."""


def predict(verb: str, size: float, on: On, ranks: int | None = None, *, one_process: bool = False) -> Estimate:
    """Return how long a collective takes, as an interval with its parts.

    Ranks fill a domain first, all that links join, and then further domains of the kind, joined by their network.

    Args:
        verb: for instance "all_reduce".
        size: bytes that a rank has: the tensor of all_reduce, broadcast, reduce, permute and send, the whole result
            of all_gather and gather, the whole input of reduce_scatter, all_to_all and scatter.
        on: the name of a target of the catalogue, "cpu" for this host as `devices calibrate` found it, or a target, a
            `Machine` or a `Calibration`.
        ranks: how many; all of the target if not said.
        one_process: whether one process drives all ranks of a machine, and starts them one after the other.

    Raises:
        TopologyError: a figure that the time depends on is not known.

    >>> predict("all_reduce", 1 << 30, "p5.48xlarge").algorithm
    'NVLS'
    """
    if verb not in VERBS:
        raise ArgumentError(
            f"there is no time of {verb!r}{did_you_mean(str(verb), VERBS) or '.'} Known: {', '.join(VERBS)}"
        )
    if not isinstance(size, (int, float)) or isinstance(size, bool) or not math.isfinite(size) or size < 0:
        raise ArgumentError(f"the size of a collective is a number of bytes, got {size!r}")
    found = resolve(on)
    if isinstance(found, Calibration):
        return found.time(verb, size, ranks)
    count = found.ranks if ranks is None else ranks
    found = found.part(count // found.domains(count))
    if found.software == "nccl":
        estimate = nccl_time(verb, size, count, found, one_process=one_process)
    elif found.software in ("neuron", "xla"):
        estimate = neuron_time(verb, size, count, found)
    else:
        estimate = _plain_time(verb, size, count, found)
    doubts = tuple(dict.fromkeys((*estimate.doubts, *found.doubts)))
    seconds = estimate.seconds
    if found.speculative:
        # Nobody has measured it: the constants are of another generation, or of none.
        seconds = Interval(seconds.low * 0.6, seconds.expected, seconds.high * 1.7)
    return Estimate(
        seconds,
        estimate.algorithm,
        estimate.latency,
        estimate.transfer,
        estimate.basis,
        found.speculative,
        doubts,
    )


def resolve(on: object) -> Machine | Calibration:
    """Return what a time is asked for."""
    if isinstance(on, (Machine, Calibration)):
        return on
    if isinstance(on, str):
        if on == "cpu":
            return read_calibration()
        on = load(on)
    if not isinstance(on, Target):
        names = ", ".join(kind.__name__ for kind in get_args(On))
        raise ArgumentError(f"a time is asked for on one of {names}, not {on!r}")
    return machine_of(on)


ASSUMED_STEP, ASSUMED_SHARE = 5e-6, 0.75


def _plain_time(verb: str, size: float, ranks: int, machine: Machine) -> Estimate:
    """Return the time of a ring on a machine whose software no model is of: bytes over links, and assumed steps."""
    domains = machine.domains(ranks)
    rate = machine.link if domains == 1 else min(machine.link, machine.between_domains())
    passes = {"all_reduce": 2.0, "broadcast": 1.0, "reduce": 1.0, "permute": 1.0, "send": 1.0}.get(verb, 1.0)
    share = (ranks - 1) / ranks if verb not in ("broadcast", "reduce", "permute", "send") else float(ranks > 1)
    steps = int(ranks > 1) if verb in ("permute", "send") else round(passes) * (ranks - 1)
    basis = f"no model of the collectives of {machine.software!r}: bytes over links, at 5 us a step"
    transfer = 0.0 if math.isinf(rate) or ranks == 1 else passes * share * size / (rate * ASSUMED_SHARE)
    return around("ring" if ranks > 1 else "none", steps * ASSUMED_STEP, transfer, (0.4, 3.0), basis)
