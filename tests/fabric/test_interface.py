"""The laws of `Fabric`, on the one that thread ranks share."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from thread_fabric import member

import devices.testing
from devices import World
from devices.errors import CollectiveError, RaceError
from devices.fabric.interface import AnyOf, Raised, Read

HOWS = [{}, {"seed": 1}, {"seed": 2}, {"parallel": True}]

pytestmark = pytest.mark.parametrize("how", HOWS, ids=str)


def test_lanes_start_at_zero_and_all_ranks_see_them_raised(how: dict[str, Any]) -> None:
    def looks(world: World) -> list[bool]:
        fabric, everyone = member("lanes").fabric, range(world.size)
        before = [fabric.holds(Raised(everyone, lane, 0)) for lane in (0, 5)]
        before.append(fabric.holds(Raised([world.rank], 3, 1)))
        dist.barrier()
        fabric.signal(3, world.rank + 1)
        fabric.wait([(fabric, Raised(everyone, 3, 1))], "all lanes")
        return [
            *before,
            fabric.holds(Raised([2], 3, 3)),
            fabric.holds(Raised([0, 1, 2], 3, 2)),
            fabric.holds(Raised([2], 4, 1)),
            fabric.holds(Raised([], 3, 99)),
        ]

    expected = [True, True, False, True, False, False, True]
    assert devices.testing.run(looks, ranks=3, **how) == [expected] * 3


def test_who_sees_a_lane_raised_sees_what_was_written_and_exported_before(how: dict[str, Any]) -> None:
    def hands_on(world: World) -> list[list[float]]:
        fabric, found = member("before").fabric, []
        for number in range(1, 30):
            if world.rank == 0:
                mine = torch.zeros(3)
                mine.fill_(number)
                fabric.export(number, mine, f"note {number}", readers=world.size - 1)
                fabric.signal(0, number)
                fabric.wait([(fabric, Read(number))], "the readers")
                continue
            fabric.wait([(fabric, Raised((0,), 0, number))], "rank 0")
            tensor, note = fabric.open(0, number)
            assert note == f"note {number}"
            assert tensor is not None
            found.append(tensor.tolist())
            fabric.close(0, number)
        return found

    expected = [[float(number)] * 3 for number in range(1, 30)]
    assert devices.testing.run(hands_on, ranks=4, **how) == [[], expected, expected, expected]


def test_an_export_lasts_until_as_many_have_closed_it_as_were_to_read_it(how: dict[str, Any]) -> None:
    def reads(world: World) -> None:
        fabric = member("readers").fabric
        if world.rank == 0:
            fabric.export("x", torch.ones(2), None, readers=3)
            assert not fabric.holds(Read("x"))
            fabric.signal(0, 1)
            fabric.open(0, "x")
            fabric.close(0, "x")
            dist.barrier()
            dist.barrier()
            assert not fabric.holds(Read("x"))
            fabric.signal(0, 2)
            fabric.wait([(fabric, Read("x"))], "the last reader")
            with pytest.raises(LookupError):
                fabric.open(0, "x")
            return
        dist.barrier()
        assert fabric.holds(Raised((0,), 0, 1))
        fabric.open(0, "x")
        if world.rank == 1:
            fabric.close(0, "x")
        dist.barrier()
        if world.rank == 2:
            fabric.wait([(fabric, Raised((0,), 0, 2))], "rank 0")
            fabric.close(0, "x")

    devices.testing.run(reads, ranks=3, **how)


def test_what_was_not_exported_cannot_be_opened(how: dict[str, Any]) -> None:
    def opens(world: World) -> None:
        fabric = member("nothing").fabric
        fabric.export("for nobody", torch.ones(1), None, readers=0)
        dist.barrier()
        for peer in range(world.size):
            for name in ("for nobody", "never heard of", ("posted", 1)):
                with pytest.raises(LookupError):
                    fabric.open(peer, name)
        assert fabric.holds(Read("for nobody"))

    devices.testing.run(opens, ranks=2, **how)


def test_an_export_may_be_a_note_alone_and_of_a_rank_to_itself(how: dict[str, Any]) -> None:
    def notes(world: World) -> tuple[Any, Any]:
        fabric = member("note").fabric
        fabric.export("note", None, world.rank, readers=1)
        found = fabric.open(world.rank, "note")
        fabric.close(world.rank, "note")
        assert fabric.holds(Read("note"))
        return found

    assert devices.testing.run(notes, ranks=3, **how) == [(None, 0), (None, 1), (None, 2)]


def test_a_raise_has_the_note_that_it_was_made_with(how: dict[str, Any]) -> None:
    def raises(world: World) -> list[object]:
        fabric = member("notes").fabric
        fabric.signal(0, 1, f"first of {world.rank}")
        fabric.signal(0, 2)
        fabric.signal(0, 4, f"fourth of {world.rank}")
        fabric.signal(1, 4)
        dist.barrier()
        peer = 1 - world.rank
        return [fabric.noted(peer, lane, value) for lane, value in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 1))]

    found = devices.testing.run(raises, ranks=2, **how)
    assert found == [[f"first of {peer}", None, None, f"fourth of {peer}", None, None] for peer in (1, 0)]


def test_one_of_several_conditions_is_enough(how: dict[str, Any]) -> None:
    def waits(world: World) -> bool:
        first, second = member("first").fabric, member("second").fabric
        if world.rank == 1:
            second.signal(0, 1)
        elif world.rank == 0:
            never = Raised((2,), 7, 1)
            first.wait([(first, never), (second, AnyOf([never, Raised((1,), 0, 1)]))], "either")
        dist.barrier()
        return first.holds(Raised((1,), 0, 1))

    assert devices.testing.run(waits, ranks=3, **how) == [False] * 3


def test_a_wait_for_what_holds_already_returns(how: dict[str, Any]) -> None:
    def waits(world: World) -> None:
        fabric = member("at once").fabric
        fabric.wait([(fabric, Raised((0,), 0, 0))], "nothing")
        fabric.wait([(fabric, Read("not there"))], "nothing")

    devices.testing.run(waits, ranks=2, **how)


def test_a_pause_lets_others_go_on(how: dict[str, Any]) -> None:
    def looks(world: World) -> int:
        fabric = member("pause").fabric
        if world.rank == 1:
            fabric.signal(0, 1)
        while not fabric.holds(Raised((1,), 0, 1)):
            fabric.pause("rank 1")
        return world.rank

    assert devices.testing.run(looks, ranks=2, **how) == [0, 1]


def test_abort_ends_those_who_wait_here_and_only_here(how: dict[str, Any]) -> None:
    def waits(world: World) -> str:
        aborted, other = member("aborted").fabric, member("other").fabric
        never = Raised((0,), 0, 1)
        if world.rank == 0:
            dist.barrier()
            if "parallel" not in how:
                aborted.abort()
            else:
                # From a thread that is nobody's.
                thread = threading.Thread(target=aborted.abort)
                thread.start()
                thread.join()
            aborted.abort()
            other.signal(0, 1)
        else:
            dist.barrier()
            # A condition of an aborted fabric is none of the other's business.
            other.wait([(aborted, Raised((0,), 9, 1)), (other, never)], "the other")
        with pytest.raises(CollectiveError, match="something was aborted"):
            aborted.wait([(aborted, never)], "something")
        return "gone on"

    assert devices.testing.run(waits, ranks=3, **how) == ["gone on"] * 3


def test_peers_go_on_when_a_rank_has_left_and_nothing_stays_when_all_have(how: dict[str, Any]) -> None:
    def leaves(world: World) -> tuple[Any, ...]:
        fabric: Any = member("left").fabric
        if world.rank == 0:
            fabric.export("last words", torch.ones(2), None, readers=1)
            fabric.signal(0, 1)
            fabric.leave()
            fabric.leave()
        dist.barrier()
        if world.rank == 1:
            tensor, _ = fabric.open(0, "last words")
            assert tensor.tolist() == [1, 1]
            fabric.close(0, "last words")
        dist.barrier()
        fabric.leave()
        dist.barrier()
        memory = fabric._memory
        return memory.lanes, memory.notes, memory.exports

    assert devices.testing.run(leaves, ranks=2, **how) == [([], [], [])] * 2


def test_a_group_that_is_opened_again_by_its_name_is_another(how: dict[str, Any]) -> None:
    def opens(world: World) -> list[bool]:
        found = []
        for _ in range(4):
            fabric = member("again").fabric
            found.append(fabric.holds(Raised((1 - world.rank,), 0, 1)))
            dist.barrier()
            fabric.signal(0, 1)
            fabric.wait([(fabric, Raised((1 - world.rank,), 0, 1))], "the peer")
            # Not all have left when it is opened again.
            fabric.leave()
        return found

    assert devices.testing.run(opens, ranks=2, **how) == [[False] * 4] * 2


@pytest.mark.parametrize("kind", ["whole", "a part", "of inference"])
def test_a_tensor_that_is_changed_before_it_was_read_is_told(kind: str, how: dict[str, Any]) -> None:
    def changes(world: World) -> None:
        fabric = member("changed").fabric
        if world.rank == 1:
            dist.barrier()
            fabric.open(0, "x")
            fabric.close(0, "x")
            return
        with torch.inference_mode(kind == "of inference"):
            memory = torch.ones(8)
        tensor = memory if kind == "whole" else memory[:4]
        fabric.export("x", tensor, None, readers=1)
        with torch.inference_mode(kind == "of inference"):
            tensor[0] = 5
        dist.barrier()

    with pytest.raises(RaceError, match="rank 0 changed a tensor in place"):
        devices.testing.run(changes, ranks=2, **how)


def test_a_tensor_may_be_changed_around_and_after(how: dict[str, Any]) -> None:
    def changes(world: World) -> None:
        fabric = member("unchanged").fabric
        if world.rank == 1:
            dist.barrier()
            for name in ("row", "part"):
                fabric.open(0, name)
                fabric.close(0, name)
            dist.barrier()
            return
        memory, other = torch.ones(2, 4), torch.ones(4)
        fabric.export("row", memory[0], None, readers=1)
        fabric.export("part", other, None, readers=1, is_part=True)
        memory[1] = 5
        other[0] = 5
        dist.barrier()
        dist.barrier()
        memory[0] = 5

    devices.testing.run(changes, ranks=2, **how)
