"""`devices.use_schedule`: a group goes by a schedule in `devices`' verbs and in torch's, or all ranks say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
import devices.testing
from devices.algorithms import ring
from devices.algorithms.schedule import Chunk, Copy, Program, Recv, Schedule, Send
from devices.calls.groups import own_verbs
from devices.errors import ArgumentError, MismatchError
from devices.topology import Topology, switch, synthesize

LINKS: Topology = switch(4, [4e9, 2e9, 1e9, 1e9])


def numbers(rank: int, *shape: int) -> torch.Tensor:
    return torch.randint(-99, 99, shape, generator=torch.Generator().manual_seed(rank)).double()


def goes_by_schedules(world: devices.World) -> str:
    me, n = world.rank, world.size
    for verb in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        plan = synthesize(LINKS, verb)
        # A plan, its schedule and the JSON of either are the same to the ranks.
        devices.use_schedule([plan, plan.schedule, plan.to_json(), plan.schedule.to_json()][me])
    for root in (0, 3):
        devices.use_schedule(synthesize(LINKS, "broadcast", root), least=8)
    xs = [numbers(rank, 8, 5) for rank in range(n)]
    mine = xs[me]
    total = torch.stack(xs).sum(0)
    for x in (mine, mine.t().contiguous().t(), mine.clone().requires_grad_()):
        assert torch.equal(devices.all_reduce(x), total)
        assert torch.equal(devices.all_gather(x), torch.cat(xs))
        assert torch.equal(devices.reduce_scatter(x), total.chunk(n)[me])
        assert torch.equal(devices.all_to_all(x), torch.cat([each.chunk(n)[me] for each in xs]))
        for root in range(n):
            assert torch.equal(devices.broadcast(x, src=root), xs[root])
    assert devices.all_reduce(torch.ones(0)).numel() == 0
    assert devices.all_reduce(torch.tensor(me)).item() == 6
    weights = numbers(me, 8, 5).requires_grad_()
    devices.all_reduce(weights).square().sum().backward()
    assert weights.grad is not None
    assert torch.equal(weights.grad, 2 * n * total)
    by_torch = mine.clone()
    dist.all_reduce(by_torch, op=dist.ReduceOp.MAX)
    assert torch.equal(by_torch, torch.stack(xs).amax(0))
    parts = [torch.empty_like(mine) for _ in range(n)]
    work = dist.all_gather(parts, mine, async_op=True)
    assert work is not None
    work.wait()
    assert torch.equal(torch.cat(parts), torch.cat(xs))
    dist.broadcast(by_torch, 3)
    assert torch.equal(by_torch, torch.stack(xs).amax(0))
    told = devices.explain(dist.group.WORLD)
    devices.drop_schedules()
    assert torch.equal(devices.all_reduce(mine), total)
    assert "schedule" not in devices.explain(dist.group.WORLD)
    return told


def test_a_groups_verbs_and_torchs_go_by_schedules_of_a_topology() -> None:
    for told in devices.testing.run(goes_by_schedules, ranks=4):
        assert "all_reduce: a schedule of 4 steps, that the program gave; else the communicator's own" in told
        assert "broadcast: a schedule of root 3 of 2 steps, for 8 bytes and more, that the program gave; else " in told
        assert "  barrier: the communicator's own" in told


def test_an_axis_of_a_mesh_goes_by_a_schedule_of_its_own() -> None:
    def go(world: devices.World) -> tuple[float, bool, bool]:
        mesh = world.mesh({"dp": 2, "tp": 2})
        plan = synthesize(switch(2, 1e9), "all_reduce")
        devices.use_schedule(plan.schedule if world.rank else plan, mesh["tp"])
        found = devices.all_reduce(torch.tensor(float(world.rank)), mesh["tp"]).item()
        # 64 MiB in each direction at 1 GB/s, or what is known without the plan.
        takes = "and takes 67.1 ms at best" if world.rank == 0 else "of which nothing is predicted"
        assert f"; all_reduce goes by the schedule that the program gave, {takes}" in devices.explain(mesh["tp"])
        assert "that the program gave" not in devices.explain(mesh["dp"])
        return found, *("a schedule of" in devices.explain(mesh[axis]) for axis in ("tp", "dp"))

    assert devices.testing.run(go, ranks=4) == [(1.0, True, False)] * 2 + [(5.0, True, False)] * 2


def test_one_rank_alone_takes_a_schedule_for_one() -> None:
    with devices.init():
        devices.use_schedule(synthesize(switch(1, 1e9), "all_reduce"))
        assert devices.all_reduce(torch.tensor(3.0)).item() == 3
        with pytest.raises(ArgumentError, match="is for 4 ranks, and the group has 1"):
            devices.use_schedule(synthesize(LINKS, "all_reduce"))


ALL_REDUCE = synthesize(LINKS, "all_reduce").schedule
PROGRAMS: tuple[Program, ...] = ()
# What comes replaces what is there, instead of being added to it.
WRONG = ring.all_reduce(4).to_json().replace("true", "false")


@pytest.mark.parametrize(
    ("mine", "odd", "least", "says"),
    [
        (ALL_REDUCE, synthesize(switch(5, 1e9), "all_reduce"), 0, "on rank 2: the schedule .* is for 5 ranks"),
        (ALL_REDUCE, synthesize(LINKS, "all_gather"), 0, "ranks 0 and 2 .* verb: 'all_reduce' on rank 0"),
        (ALL_REDUCE, ALL_REDUCE.to_json().replace("output\",0,", "output\",0,1"), 0, "ranks 0 and 2 .* in chunks"),
        (synthesize(LINKS, "reduce", 1), synthesize(LINKS, "reduce", 2), 0, "in root: 1 on rank 0 and 2 on rank 2"),
        (ring.all_reduce(4), WRONG, 0, "ranks 0 and 2 .* in the program of rank 0"),
        (ALL_REDUCE, "{}", 0, "on rank 2: this JSON is no schedule: KeyError"),
        (ALL_REDUCE, "no", 0, "on rank 2: this JSON is no schedule: .* begins with 'no'"),
        (ALL_REDUCE, Schedule("all_reduce", 4, (), PROGRAMS.__getitem__), 0, "on rank 2: IndexError: tuple index"),
        (ALL_REDUCE, 7, 0, "on rank 2: it takes a Schedule, .* got int"),
        (ALL_REDUCE, ALL_REDUCE, 1, "in least: 0 on rank 0 and 1 on rank 2"),
        (ALL_REDUCE, ALL_REDUCE, -1, "on rank 2: least=-1; it is a number of bytes"),
        (synthesize(LINKS, "all_to_all"), synthesize(LINKS, "all_to_all"), 1, "on rank 2: least=1: what an all_to_all"),
    ],
)  # fmt: skip
def test_what_does_not_fit_or_differs_is_one_error_on_every_rank(mine: Any, odd: Any, least: int, says: str) -> None:
    def go(world: devices.World) -> float:
        is_odd = world.rank == 2
        with pytest.raises(ArgumentError, match=says):
            devices.use_schedule(odd if is_odd else mine, least=least if is_odd else 0)
        # The group goes on, as it did.
        assert "a schedule" not in devices.explain(dist.group.WORLD)
        return devices.all_reduce(torch.tensor(1.0)).item()

    assert devices.testing.run(go, ranks=4) == [4.0] * 4


def test_a_schedule_that_computes_something_else_is_refused_on_every_rank() -> None:
    def go(world: devices.World) -> None:
        with pytest.raises(ArgumentError, match=r"on rank 0: all_reduce: rank . of 4 ends with wrong data"):
            devices.use_schedule(WRONG)

    devices.testing.run(go, ranks=4)


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ((lambda x: devices.all_reduce(x), lambda x: devices.all_reduce(x, op="max")), "op"),
        ((lambda x: devices.all_reduce(x), lambda x: devices.all_gather(x)), "verb"),
        ((lambda x: devices.all_reduce(x), lambda x: devices.all_reduce(torch.ones(9))), "size"),
    ],
)
def test_calls_that_differ_are_an_error_by_a_schedule_too(
    calls: tuple[Callable[[torch.Tensor], object], ...], says: str
) -> None:
    def go(world: devices.World) -> None:
        for verb in ("all_reduce", "all_gather"):
            devices.use_schedule(synthesize(LINKS, verb))
        calls[world.rank == 1](torch.ones(8))

    with pytest.raises(MismatchError, match=f"the ranks' calls differ in {says}"):
        devices.testing.run(go, ranks=4)


def adds_where_it_received(world: devices.World) -> list[float]:
    # Right as long as input and output lie in memory of their own.
    programs: tuple[Program, ...] = (
        ((Send(1, 1), Recv(1, 2)), (Copy(0, 2, True),)),
        ((Send(0, 0), Recv(0, 3)), (Copy(1, 3, True),)),
    )
    chunks = (Chunk("input", 0), Chunk("input", 1), Chunk("output", 0), Chunk("output", 1))
    devices.use_schedule(Schedule("reduce_scatter", 2, chunks, programs.__getitem__))
    x = torch.arange(4.0) + 10 * world.rank
    own = x[2 * world.rank : 2 * world.rank + 2]
    own_verbs(None).reduce_scatter(own, x)
    return own.tolist()


def test_a_result_that_is_written_into_the_input_is_right_by_any_schedule() -> None:
    assert devices.testing.run(adds_where_it_received, ranks=2) == [[10.0, 12.0], [14.0, 16.0]]
