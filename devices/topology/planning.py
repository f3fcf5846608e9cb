"""Choices of target, mesh and batch for a model, and which of them is fastest, cheapest, takes least energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from devices.catalogue import Target, load
from devices.errors import ArgumentError, TopologyError
from devices.topology.chip import check_given
from devices.topology.machine import machine_of
from devices.topology.model import TASKS, Model
from devices.topology.service import serving
from devices.topology.training import Run, training_step

_DEEPEST = 64
"""A pipeline of more stages is not tried."""


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """One target, mesh and batch.

    Args:
        run: the step of a training; of serving, the decoding.
        prefill: of serving, the reading of the prompts.
        wins: what it is best at among the choices that fit: "fastest", "cheapest", "least energy".
    """

    run: Run
    prefill: Run | None = None
    wins: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            **self.run.as_data(),
            "prefill": self.prefill.as_data() if self.prefill else None,
            "wins": list(self.wins),
        }


@final
@dataclass(frozen=True, slots=True)
class Choices:
    """What was compared.

    Args:
        found: the choices, those that fit first, of those the fastest first.
        refused: for each target, or target and batch, why nothing can be said of it.
    """

    found: tuple[Choice, ...]
    refused: Mapping[str, str] = field(hash=False)

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"choices": [each.as_data() for each in self.found], "refused": dict(self.refused)}


def choices(
    model: Model,
    targets: Iterable[str],
    *,
    task: str = "train",
    batches: Sequence[int] = (64,),
    meshes: Sequence[Mapping[str, int]] | None = None,
    chips: int | None = None,
    watts: float | None = None,
    price: float | None = None,
) -> Choices:
    """Return the choices for a model.

    Args:
        model: what is trained or served.
        targets: names of targets of the catalogue.
        task: "train" or "serve".
        batches: sequences at a time, of all ranks together; each is tried.
        meshes: those to try; if not said, all that suit the model are, and the best of each target and batch is kept.
        chips: how many of each target; all of it if not said.
        watts: what a chip takes; the catalogue's figure if not said.
        price: what an hour of a chip costs; the catalogue's figure if not said.
    """
    if task not in TASKS:
        raise ArgumentError(f"a model is wanted to {' or to '.join(TASKS)}, not to {task!r}")
    check_given(watts, price)
    found: list[Choice] = []
    refused: dict[str, str] = {}
    for name in targets:
        target = load(name)
        mark = "speculative; " if target.speculative else ""
        try:
            ranks = _ranks(target, chips)
        except (ArgumentError, TopologyError) as error:
            refused[name] = f"{mark}{error}"
            continue
        for batch in batches:
            tried: list[Choice] = []
            said = f"no mesh of {ranks} ranks suits the model and a batch of {batch}"
            for mesh in _meshes(model, target, ranks, task, batch) if meshes is None else meshes:
                try:
                    tried.append(_one(model, target, mesh, batch, task, watts, price))
                except ArgumentError as error:
                    said = said if meshes is None else str(error)
                except TopologyError as error:
                    said = str(error)
                    break
            if not tried or (meshes is not None and len(tried) < len(meshes)):
                refused[f"{name}, batch {batch}"] = f"{mark}{said}"
            found += tried if meshes is not None else sorted(tried, key=_worth)[:1]
    return Choices(tuple(_won(sorted(found, key=_worth))), refused)


def _ranks(target: Target, chips: int | None) -> int:
    machine = machine_of(target)
    if chips is None:
        return machine.ranks
    if not isinstance(chips, int) or isinstance(chips, bool) or chips < 1:
        raise ArgumentError(f"a number of chips is a whole number of at least 1, got {chips!r}")
    ranks = chips * machine.ranks_per_chip
    machine.domains(ranks)
    return ranks


def _one(
    model: Model,
    target: Target,
    mesh: Mapping[str, int],
    batch: int,
    task: str,
    watts: float | None,
    price: float | None,
) -> Choice:
    if task == "serve":
        found = serving(model, target, mesh, batch, watts=watts, price=price)
        return Choice(found.decode, found.prefill)
    # What of its layers a step computes again is chosen last: as little as fits.
    run = training_step(model, target, mesh, batch, watts=watts, price=price)
    if not run.fits:
        run = training_step(model, target, mesh, batch, recompute="all", watts=watts, price=price)
    return Choice(run)


def _meshes(model: Model, target: Target, ranks: int, task: str, batch: int) -> Iterator[dict[str, int]]:
    """Yield the meshes of so many ranks that suit a model: tp within a domain; fsdp over all, some, or no replicas."""
    room = machine_of(target).ranks_per_domain
    for tp in _divisors(ranks):
        if tp > room or model.heads % tp:
            continue
        for pp in _divisors(ranks // tp):
            if pp > _DEEPEST or model.layers % pp:
                continue
            replicas = ranks // tp // pp
            if batch % replicas:
                continue
            yield {"pp": pp, "dp": replicas, "tp": tp}
            if task == "train" and replicas > 1:
                near = max(1, room // tp)
                yield {"pp": pp, "fsdp": replicas, "tp": tp}
                if 1 < near < replicas and replicas % near == 0:
                    yield {"pp": pp, "dp": replicas // near, "fsdp": near, "tp": tp}


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def _worth(choice: Choice) -> tuple[bool, float]:
    """Return what choices are sorted by: those that fit before others, the fastest, or nearest to fit, first."""
    run = choice.run
    return not run.fits, -run.tokens.expected if run.fits else run.memory / run.capacity


def _won(found: Sequence[Choice]) -> Iterator[Choice]:
    """Yield the choices with what each is best at."""
    fit = [choice for choice in found if choice.run.fits]
    best: dict[str, Choice] = {}
    if fit:
        best["fastest"] = max(fit, key=lambda each: each.run.tokens.expected)
    if priced := [(each.run.price.expected, place, each) for place, each in enumerate(fit) if each.run.price]:
        best["cheapest"] = min(priced)[2]
    if powered := [(each.run.joules.expected, place, each) for place, each in enumerate(fit) if each.run.joules]:
        best["least energy"] = min(powered)[2]
    for choice in found:
        yield Choice(choice.run, choice.prefill, tuple(name for name, one in best.items() if one is choice))
