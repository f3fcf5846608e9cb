"""The proof of a plan: its schedule moves real tensors, and every byte is counted on every link that it crosses.

Nothing here asks how the plan was made or what it promises: it reads the schedule, the routes and the topology.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import torch

from devices.algorithms.layout import Layout
from devices.algorithms.replay import replay as run
from devices.algorithms.schedule import Recv, Schedule
from devices.errors import TopologyError
from devices.topology.graph import Topology
from devices.topology.synthesis import Plan

Parts = dict[int, torch.Tensor]


@final
@dataclass(frozen=True)
class Replayed:
    """What a plan did.

    Args:
        crossed: the bytes that went from a node to the next, by the two names.
        seconds_per_byte: the time that the link with most to do takes, for each byte of the data.
        messages: how many there were.
        steps: the most that any rank has.
    """

    crossed: dict[tuple[str, str], int]
    seconds_per_byte: Fraction
    messages: int
    steps: int


def replay(plan: Plan, elements: int | None = None) -> Replayed:
    """Run a plan on tensors of random numbers in this process, compare the results with plain torch, and count.

    Args:
        plan: what to run.
        elements: of each part; as many as its chunks have units, unless said, so that no chunk is rounded.

    Raises:
        TopologyError: a rank ends with wrong data, or a message takes a route that is none.
        ArgumentError: the schedule cannot be run.
    """
    schedule = plan.schedule.validate()
    sizes = _sizes(schedule, elements)
    given, expected, outputs, layouts = _data(schedule, sizes)
    run(schedule, layouts)
    for rank, wanted in enumerate(expected):
        for part, tensor in wanted.items():
            if not torch.equal(outputs[rank][part], tensor):
                raise TopologyError(f"{schedule.verb}: rank {rank} of {schedule.size} has wrong data in part {part}")
    crossed: dict[tuple[str, str], int] = {}
    messages = 0
    for rank, layout in enumerate(layouts):
        for step in schedule.program(rank):
            for action in step:
                if isinstance(action, Recv):
                    messages += 1
                    path = plan.route(action.peer, rank, action.chunk, action.reduce)
                    _check_path(plan.topology, schedule, action.peer, rank, path)
                    tensor = layout[action.chunk]
                    for ends in itertools.pairwise(path):
                        crossed[ends] = crossed.get(ends, 0) + tensor.numel() * tensor.element_size()
    rates: dict[tuple[str, str], Fraction] = {}
    for link in plan.topology.links:
        ends = link.source, link.target
        rates[ends] = rates.get(ends, Fraction(0)) + Fraction(link.bandwidth or 0)
    for ends in crossed:
        if ends not in rates:
            raise TopologyError(f"a message goes from {ends[0]!r} to {ends[1]!r}, between which there is no link")
    slowest = max((Fraction(count) / rates[ends] for ends, count in crossed.items()), default=Fraction(0))
    steps = max(len(schedule.program(rank)) for rank in range(schedule.size))
    return Replayed(crossed, slowest / given, messages, steps)


def _sizes(schedule: Schedule, elements: int | None) -> list[int]:
    sizes: dict[int, int] = {}
    for chunk, (_, _, whole) in zip(schedule.chunks, schedule.extents, strict=True):
        sizes[chunk.part] = whole if elements is None else elements
    return [sizes.get(part, 0) for part in range(max(sizes) + 1)]


def _data(schedule: Schedule, sizes: Sequence[int]) -> tuple[int, list[Parts], list[Parts], list[Layout]]:
    """Return the bytes of the data, what each rank's output should be in the end, its output, and its chunks."""
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(0, dtype=torch.int64)
    size = schedule.size

    def some(count: int) -> torch.Tensor:
        return torch.randint(-(2**40), 2**40, (count,), generator=generator)

    def empty(counts: Sequence[int]) -> Parts:
        return {part: torch.full((count,), -1) for part, count in enumerate(counts)}

    inputs: list[Parts]
    outputs: list[Parts]
    expected: list[Parts]
    if schedule.verb == "all_gather":
        inputs = [{rank: some(sizes[rank])} for rank in range(size)]
        outputs = [empty(sizes) for _ in range(size)]
        whole = {rank: inputs[rank][rank] for rank in range(size)}
        expected = [whole for _ in range(size)]
        given = sum(sizes)
    elif schedule.verb == "reduce_scatter":
        inputs = [{part: some(sizes[part]) for part in range(size)} for _ in range(size)]
        outputs = [{rank: torch.full((sizes[rank],), -1)} for rank in range(size)]
        expected = [{rank: torch.stack([each[rank] for each in inputs]).sum(0)} for rank in range(size)]
        given = sum(sizes)
    elif schedule.verb == "all_to_all":
        inputs = [{part: some(sizes[part]) for part in range(size)} for _ in range(size)]
        outputs = [empty(sizes) for _ in range(size)]
        expected = [{source: inputs[source][rank] for source in range(size)} for rank in range(size)]
        given = sum(sizes)
    else:
        inputs = [{} for _ in range(size)]
        outputs = [{0: some(sizes[0])} for _ in range(size)]
        total = torch.stack([each[0] for each in outputs]).sum(0)
        root = schedule.root or 0
        if schedule.verb == "broadcast":
            expected = [{0: outputs[root][0].clone()} for _ in range(size)]
        elif schedule.verb == "reduce":
            expected = [{0: total} if rank == root else {} for rank in range(size)]
        else:
            expected = [{0: total} for _ in range(size)]
        given = sizes[0]
    layouts = [Layout(schedule, sizes, like, inputs[rank], outputs[rank]) for rank in range(size)]
    return given * like.element_size(), expected, outputs, layouts


def _check_path(topology: Topology, schedule: Schedule, source: int, target: int, path: Sequence[str]) -> None:
    ends = topology.devices[source].name, topology.devices[target].name
    if (path[0], path[-1]) != ends:
        raise TopologyError(f"a message from {ends[0]!r} to {ends[1]!r} has a route from {path[0]!r} to {path[-1]!r}")
    if schedule.verb != "all_to_all" and (passed := [name for name in path[1:-1] if topology.node(name).is_device]):
        raise TopologyError(f"a message from {ends[0]!r} to {ends[1]!r} goes through {passed[0]!r}, which is a device")
