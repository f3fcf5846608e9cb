"""Verbs by schedules: cut into slices that follow each other, and proven beforehand to compute what they are for."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from in_memory import KINDS, Point, Whole, on_all_ranks

from devices.algorithms import direct, pairwise, planned, recursive, ring, trees
from devices.algorithms.planned import Planned
from devices.algorithms.proof import checked, prove
from devices.algorithms.schedule import Schedule
from devices.algorithms.timing import times
from devices.algorithms.verbs import Verbs
from devices.errors import ArgumentError
from devices.topology import Topology, machines, switch, synthesize, torus

UNEQUAL = switch(5, [3, 1, 2, 2, 1])
IN_A_RING = torus((5,), 1)


def numbers(rank: int, count: int) -> torch.Tensor:
    return torch.randint(-1000, 1000, (count,), generator=torch.Generator().manual_seed(rank)).float()


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "SLICE", 64)
    monkeypatch.setattr(planned, "MESSAGE", 1)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("topology", [UNEQUAL, IN_A_RING], ids=["unequal", "ring"])
@pytest.mark.parametrize("kind", [Point, Whole])
@pytest.mark.parametrize("count", [0, 1, pytest.param(1003, marks=pytest.mark.slow)])
def test_every_verb_by_a_schedule_computes_what_plain_torch_does(kind: type, topology: Topology, count: int) -> None:
    n = len(topology.devices)
    schedules = [synthesize(topology, verb).schedule for verb in ("all_reduce", "all_gather", "reduce_scatter")]
    schedules += [synthesize(topology, "all_to_all").schedule]
    schedules += [synthesize(topology, verb, 2).schedule for verb in ("broadcast", "reduce")]
    xs = [numbers(rank, count) for rank in range(n)]
    blocks = [numbers(rank, n * count) for rank in range(n)]
    sizes = [rank * 7 % 5 * (count > 0) for rank in range(n)]

    def calls(verbs: Verbs, me: int) -> None:
        for schedule in schedules:
            verbs.go_by(Planned(schedule, me, 0, "for a test"))
        x = xs[me].clone()
        verbs.all_reduce(x)
        assert torch.equal(x, torch.stack(xs).sum(0))
        y = blocks[me].clone()
        work = verbs.all_reduce(y, "max", async_op=True)
        verbs.all_gather(out := torch.empty(n * count), xs[me])
        assert torch.equal(out, torch.cat(xs))
        work.wait()
        assert torch.equal(y, torch.stack(blocks).amax(0))
        uneven = torch.empty(sum(sizes))
        verbs.all_gather(uneven, numbers(me, sizes[me]), sizes)
        assert torch.equal(uneven, torch.cat([numbers(rank, sizes[rank]) for rank in range(n)]))
        verbs.reduce_scatter(part := torch.empty(count), blocks[me])
        assert torch.equal(part, torch.stack(blocks).sum(0)[me * count :][:count])
        verbs.all_to_all(swapped := torch.empty(n * count), blocks[me])
        assert torch.equal(swapped, torch.cat([block[me * count :][:count] for block in blocks]))
        for root in range(n):
            z = xs[me].clone()
            verbs.broadcast(z, root)
            assert torch.equal(z, xs[root])
            z = xs[me].clone()
            verbs.reduce(z, root)
            assert torch.equal(z, torch.stack(xs).sum(0) if me == root else xs[me])

    on_all_ranks(kind, n, calls)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.uint16, torch.complex64, torch.int8])
def test_every_dtype_goes_by_a_schedule_as_it_does_without(dtype: torch.dtype) -> None:
    schedule = synthesize(UNEQUAL, "all_reduce").schedule
    xs = [numbers(rank, 501).abs().to(dtype) for rank in range(5)]
    op = "bor" if dtype is torch.bool else "sum"

    def calls(verbs: Verbs, me: int) -> tuple[torch.Tensor, torch.Tensor]:
        without, x = xs[me].clone(), xs[me].clone()
        verbs.all_reduce(without, op)
        verbs.go_by(Planned(schedule, me, 0, "for a test"))
        verbs.all_reduce(x, op)
        return without, x

    found = on_all_ranks(Point, 5, calls)
    for without, x in found:
        assert torch.equal(x.view(torch.uint8), found[0][1].view(torch.uint8))
        # Small whole numbers: their order does not tell.
        assert torch.equal(
            x.float() if dtype is torch.bfloat16 else x, without.float() if dtype is torch.bfloat16 else without
        )


@pytest.mark.usefixtures("small_slices")
def test_sums_by_a_schedule_have_the_same_bits_on_all_ranks() -> None:
    schedule = synthesize(UNEQUAL, "all_reduce").schedule

    def calls(verbs: Verbs, me: int) -> bytes:
        verbs.go_by(Planned(schedule, me, 0, "for a test"))
        x = torch.randn(4001, generator=torch.Generator().manual_seed(me)) * 10.0**me
        verbs.all_reduce(x)
        return x.numpy().tobytes()

    assert len(set(on_all_ranks(Point, 5, calls))) == 1


def test_calls_of_fewer_bytes_go_as_without_and_all_do_once_it_is_dropped() -> None:
    schedule = ring.all_reduce(3)

    def calls(verbs: Verbs, me: int) -> list[list[str]]:
        communicator = verbs._communicator
        assert isinstance(communicator, Whole)
        found = []
        verbs.all_reduce(torch.ones(100))
        verbs.go_by(Planned(schedule, me, 400, "for a test"))
        for count in (99, 100):
            communicator.called.clear()
            verbs.all_reduce(torch.ones(count))
            found.append(sorted(set(communicator.called)))
        assert verbs.ways["all_reduce"] == (
            "a schedule of 4 steps, for 400 bytes and more, for a test; else the communicator's own"
        )
        verbs.go_by(None)
        communicator.called.clear()
        verbs.all_reduce(torch.ones(100))
        return [*found, communicator.called]

    assert on_all_ranks(Whole, 3, calls) == [[["all_reduce sum"], ["exchange"], ["all_reduce sum"]]] * 3


@pytest.mark.parametrize(
    "schedule",
    [
        *(make(size) for size in (2, 3, 5) for make in (ring.all_reduce, recursive.doubling, recursive.halving)),
        *(make(4) for make in (ring.all_gather, pairwise.all_gather, ring.reduce_scatter, pairwise.reduce_scatter)),
        pairwise.all_to_all(4),
        trees.broadcast(5, 3),
        trees.reduce(5, 3),
        *(
            synthesize(machines(2, 4, 300, 25), verb).schedule
            for verb in ("all_reduce", "all_to_all", "reduce_scatter")
        ),
    ],
    ids=lambda schedule: f"{schedule.verb} {schedule.size}",
)
def test_schedules_that_compute_their_verb_are_proven(schedule: Schedule) -> None:
    prove(checked(schedule, planned.VERBS))


def edited(schedule: Schedule, edit: Callable[[dict[str, list[list[list[list[object]]]]]], object]) -> Schedule:
    data = json.loads(schedule.to_json())
    edit(data)
    return Schedule.from_json(json.dumps(data))


def test_a_schedule_that_does_not_compute_its_verb_is_refused() -> None:
    ring_of_3 = ring.all_reduce(3)

    def one_replaces(data: dict[str, list[list[list[list[object]]]]]) -> None:
        [received] = [action for action in data["programs"][1][0] if action[0] == "recv"]
        received[3] = False

    with pytest.raises(ArgumentError, match="all_reduce: rank 0 of 3 ends with wrong data in chunk"):
        prove(edited(ring_of_3, one_replaces))
    with pytest.raises(ArgumentError, match="ends with wrong data"):
        prove(edited(ring_of_3, lambda data: data.update(programs=[[], [], []])))
    first = [["recv", 1, 0, False]], [["send", 1, 0]]
    second = [["recv", 0, 0, False]], [["send", 0, 0]]
    with pytest.raises(ArgumentError, match="a deadlock"):
        prove(edited(ring.all_reduce(2), lambda data: data.update(programs=[first, second])))
    with pytest.raises(ArgumentError, match="part 1 of the output, which the verb over 3 ranks has not"):
        prove(edited(ring_of_3, lambda data: data["chunks"][0].__setitem__(1, 1)))
    with pytest.raises(ArgumentError, match="no chunk is of part 0 of the output"):
        prove(edited(ring_of_3, lambda data: data.update(chunks=[["scratch", 0, 1]], programs=[[], [], []])))
    with pytest.raises(ArgumentError, match="of an input of which it has part 0 alone"):
        prove(edited(ring.all_gather(2), lambda data: data["programs"][0].append([["copy", 3, 1, False]])))


def test_a_sum_in_another_order_on_each_rank_is_refused() -> None:
    # Each of three ranks adds the two others' data to its own.
    apart = [["output", 0, 1], *[["scratch", 0, 1]]]
    programs = [
        [
            [["copy", 0, 1, False]],
            [["send", peer, 1] for peer in range(3) if peer != rank]
            + [
                ["recv", peer, 0, True]
                for peer in sorted((peer for peer in range(3) if peer != rank), reverse=rank != 1)
            ],
        ]
        for rank in range(3)
    ]
    schedule = edited(ring.all_reduce(3), lambda data: data.update(chunks=apart, programs=programs))
    with pytest.raises(ArgumentError, match="add chunk 0 up in different orders"):
        prove(schedule)


def test_no_schedule_is_for_a_verb_without_its_root_or_one_that_goes_by_none() -> None:
    with pytest.raises(ArgumentError, match="a group goes by no schedule for 'gather'"):
        checked(direct.gather(3, 0), planned.VERBS)
    with pytest.raises(ArgumentError, match="a schedule for broadcast has a root; this one's is None"):
        checked(edited(trees.broadcast(3, 0), lambda data: data.update(root=None)), planned.VERBS)


@pytest.mark.parametrize("verb", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"])
def test_both_sides_of_each_message_have_it_at_one_time(verb: str) -> None:
    for topology in (UNEQUAL, IN_A_RING, machines(2, 4, 300, 25)):
        schedule = synthesize(topology, verb).schedule
        at: dict[tuple[int, int], list[list[int]]] = {}
        for rank in range(schedule.size):
            found = times(schedule, rank)
            assert found is not None
            assert list(found.steps) == sorted(set(found.steps))
            assert all(step < found.total for step in found.steps)
            for step, time in zip(schedule.program(rank), found.steps, strict=True):
                for action in step:
                    kind = type(action).__name__
                    if kind in ("Send", "Recv"):
                        pair = (rank, action.peer) if kind == "Send" else (action.peer, rank)
                        at.setdefault(pair, [[], []])[kind == "Recv"].append(time)
        assert at
        for sent, received in at.values():
            assert sent == received


def test_a_schedule_that_has_no_such_times_has_none_and_is_run_whole() -> None:
    # Rank 0 sends twice in one step what rank 1 receives in two.
    def twice(data: dict[str, object]) -> None:
        data["chunks"] = [["output", 0, 1], ["output", 0, 1]]
        data["programs"] = [
            [[["send", 1, 0], ["send", 1, 1]]],
            [[["recv", 0, 0, False]], [["recv", 0, 1, False]]],
        ]

    schedule = edited(trees.broadcast(2, 0), twice)
    prove(schedule)
    assert times(schedule, 0) is None

    def calls(verbs: Verbs, me: int) -> list[float]:
        verbs.go_by(Planned(schedule, me, 0, "for a test"))
        x = torch.full((1 << 17,), float(me))
        verbs.broadcast(x, 0)
        return x.unique().tolist()

    assert on_all_ranks(Point, 2, calls) == [[0.0], [0.0]]
    assert Point in KINDS
