"""Ranks of several targets in one run: each has its own limits, and a group of several is composed over its domains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import devices
import devices.testing
from devices import World
from devices.errors import ArgumentError, DeadlockError, MismatchError, TargetNotFoundError, UnsupportedError
from devices.testing import Mixed

BOTH = {"trainium2": 2, "h100": 2}


def said_by(world: World, kind: type[Exception], call: Any) -> str:
    with pytest.raises(kind) as caught:
        call()
    devices.barrier()
    return str(caught.value)


@pytest.mark.parametrize("kinds", [BOTH, {"h100": 1, "trainium2": 4}], ids=str)
def test_all_verbs_are_right_over_two_kinds(kinds: dict[str, int]) -> None:
    size = sum(kinds.values())

    def verbs(world: World) -> None:
        rank = world.rank
        x = torch.arange(5.0) + rank
        assert devices.all_reduce(x).tolist() == [size * place + sum(range(size)) for place in range(5)]
        assert devices.all_reduce(x, op="max").tolist() == [place + size - 1.0 for place in range(5)]
        assert devices.all_gather(torch.tensor([rank])).tolist() == list(range(size))
        assert devices.broadcast(torch.tensor(rank), src=size - 1).item() == size - 1
        scattered = devices.reduce_scatter(torch.arange(2.0 * size))
        assert scattered.tolist() == [size * 2.0 * rank, size * (2.0 * rank + 1)]
        assert devices.all_to_all(torch.arange(size) + 10 * rank).tolist() == [10 * peer + rank for peer in range(size)]
        total = devices.reduce(torch.tensor(rank), dst=1)
        assert (total is None) == (rank != 1)
        assert total is None or total.item() == sum(range(size))
        round_the_ranks = [(peer, (peer + 1) % size) for peer in range(size)]
        assert devices.permute(torch.tensor(rank), pairs=round_the_ranks).item() == (rank - 1) % size
        if rank == 0:
            devices.send(torch.tensor([7.0]), dst=size - 1)
        if rank == size - 1:
            assert devices.recv(torch.zeros(1), src=0).item() == 7.0

    devices.testing.run(verbs, ranks=kinds, seed=3)


def test_a_dtype_that_one_side_lacks_is_refused_on_every_rank_and_both_sides_are_named() -> None:
    def asked(world: World) -> str:
        return said_by(world, UnsupportedError, lambda: devices.all_reduce(torch.ones(2, dtype=torch.float64)))

    for rank, said in enumerate(devices.testing.run(asked, ranks=BOTH)):
        assert f"rank {rank} of 4" in said
        assert "trainium2 at LNC 2 (ranks 0, 1) and h100 (ranks 2, 3): trainium2 at LNC 2 refuses it" in said
        assert "cannot be float64 (documented: " in said


def test_a_group_of_one_side_has_that_sides_limits_alone() -> None:
    def asked(world: World) -> Any:
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        x = torch.ones(2, dtype=torch.float64)
        if world.rank > 1:
            return devices.all_reduce(x, groups[1]).tolist()
        with pytest.raises(UnsupportedError) as caught:
            devices.all_reduce(x, groups[0])
        return str(caught.value)

    first, second, *others = devices.testing.run(asked, ranks=BOTH)
    assert others == [[2.0, 2.0]] * 2
    for said in (first, second):
        assert said.startswith("trainium2 refuses: ")
        assert "h100" not in said


def test_a_number_of_ranks_that_one_side_cannot_have_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"the world over trainium2 .* and h100 .*: 3 is no legal number of ranks"
    ):
        devices.testing.run(lambda world: None, ranks={"trainium2": 3, "h100": 1})


def test_what_must_cross_crosses_once_and_the_report_says_how_much() -> None:
    mixed = Mixed(BOTH)
    devices.testing.run(lambda world: devices.all_reduce(torch.ones(1 << 16)), ranks=mixed)
    # A sum of M bytes takes M across in each direction; by two words of 1 KiB the domains compare the call.
    assert 2 * (1 << 18) <= mixed.report.crossed <= 2 * (1 << 18) + 4 * 1024
    assert mixed.report.calls == {"all_reduce": 1}
    assert mixed.report.as_data()["crossed"] == mixed.report.crossed
    assert "2 trainium2 at LNC 2 + 2 h100:" in str(mixed.report)
    assert [asked.calls for report in mixed.report.limits.values() for asked in report.asked] == [2, 2]


def test_a_report_is_of_the_last_run() -> None:
    mixed = Mixed(BOTH)
    for _ in range(2):
        devices.testing.run(lambda world: devices.barrier(), ranks=mixed, schedules=2)
    assert mixed.report.calls == {"barrier": 1}


def test_the_world_says_what_its_ranks_are() -> None:
    def told(world: World) -> tuple[str, str]:
        return world.backend, devices.explain()

    found = devices.testing.run(told, ranks=BOTH)
    assert [backend for backend, _ in found] == ["trainium2 at LNC 2"] * 2 + ["h100"] * 2
    assert "emulated among 2 trainium2 at LNC 2 + 2 h100" in found[3][1]
    assert "trainium2 at LNC 2 (ranks 0, 1) and h100 (ranks 2, 3); inside of them" in found[3][1]


def test_a_call_that_differs_between_domains_is_a_mismatch_on_every_rank() -> None:
    def asked(world: World) -> str:
        with pytest.raises(MismatchError) as caught:
            devices.all_reduce(torch.ones(2), op="max" if world.rank > 1 else "sum")
        return str(caught.value)

    for said in devices.testing.run(asked, ranks=BOTH):
        assert "'sum'" in said
        assert "'max'" in said


def test_a_deadlock_over_several_kinds_is_found() -> None:
    def forgetful(world: World) -> None:
        if world.rank == 0:
            devices.recv(torch.ones(2), src=3)

    with pytest.raises(DeadlockError, match="rank 0 of 4 waits for rank 3"):
        devices.testing.run(forgetful, ranks=BOTH)


@pytest.mark.parametrize(
    ("keywords", "kind", "says"),
    [
        ({"ranks": {"trainum2": 2, "h100": 2}}, TargetNotFoundError, "did you mean 'trainium2'"),
        ({"ranks": {"trainium2": 0, "h100": 2}}, ArgumentError, "of 'trainium2' there is at least one rank, not 0"),
        ({"ranks": {"trainium2": True}}, ArgumentError, "at least one rank, not True"),
        ({"ranks": {"rubin": 1, "vera-rubin": 1}}, ArgumentError, "'rubin' is named twice"),
        ({"ranks": {}}, ArgumentError, "at least one rank"),
        ({"ranks": BOTH, "target": "h100"}, ArgumentError, "say themselves what they are"),
        ({"ranks": BOTH, "backend": "cpu"}, ArgumentError, "are emulated on none"),
        ({"ranks": BOTH, "assume": {"bridge": "none"}}, ArgumentError, "nothing is assumed of 2 trainium2"),
        ({"ranks": 2, "assume": {"bridge": "none"}}, ArgumentError, "nothing is assumed of these ranks"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_an_error(keywords: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        devices.testing.run(lambda world: None, **keywords)


@pytest.mark.parametrize("kinds", [4, BOTH], ids=["one kind", "two kinds"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["in order", "in the other order"])
def test_receives_from_any_rank_and_from_one_take_messages_in_the_order_they_were_asked_for(
    kinds: int | dict[str, int], order: tuple[int, ...]
) -> None:
    def passed(world: World) -> list[float]:
        came = [torch.zeros(4) for _ in order]
        if world.rank == 0:
            for number in range(len(came)):
                dist.send(torch.full((4,), 1.0 + number), 2)
        if world.rank == 2:
            works = [dist.irecv(came[0]), dist.irecv(came[1], src=0), dist.irecv(came[2])]
            for at in order:
                works[at].wait()
        return [each[0].item() for each in came]

    assert devices.testing.run(passed, ranks=kinds, seed=5)[2] == [1.0, 2.0, 3.0]


def test_a_receive_from_any_rank_goes_on_while_its_rank_sends_and_can_be_asked_whether_it_is_done() -> None:
    def passed(world: World) -> float:
        mine, came = torch.full((4,), 1.0 + world.rank), torch.zeros(4)
        if world.rank == 0:
            dist.send(mine, 2)
            dist.recv(came, 2)
        if world.rank == 2:
            work = dist.irecv(came)
            dist.send(mine, 0)
            while not work.is_completed():
                pass
            work.wait()
        return came[0].item()

    assert devices.testing.run(passed, ranks=BOTH)[::2] == [3.0, 1.0]


def test_a_receive_from_any_rank_that_nobody_sends_for_is_a_deadlock() -> None:
    def asked(world: World) -> None:
        if world.rank == 2:
            dist.recv(torch.zeros(4))
        devices.barrier()

    with pytest.raises(DeadlockError, match="recv from any rank"):
        devices.testing.run(asked, ranks=BOTH)


def test_explain_calls_the_ranks_of_a_part_by_their_ranks_in_the_world() -> None:
    def said(world: World) -> str:
        group = dist.new_group([1, 2, 3])
        return devices.explain(group) if world.rank else ""

    for explained in devices.testing.run(said, ranks=BOTH)[1:]:
        assert "trainium2 at LNC 2 (rank 1) and h100 (ranks 2, 3); inside of" in explained


def test_a_verb_in_a_graph_that_is_captured_is_refused_and_the_group_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = {0, 1, 2, 3}
    monkeypatch.setattr("devices.domains.communicator.is_capturing", lambda _: dist.get_rank() in captured)

    def asked(world: World) -> float:
        with pytest.raises(UnsupportedError, match="call the verb outside of the capture"):
            devices.all_reduce(torch.ones(2))
        captured.discard(world.rank)
        return devices.all_reduce(torch.ones(2))[0].item()

    assert devices.testing.run(asked, ranks=BOTH) == [4.0] * 4
