"""The laws of `Fabric`, as what each rank does: threads run them, and processes too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fabric_member import member

from devices import World
from devices.errors import CollectiveError
from devices.fabric.interface import AnyOf, Raised, Read
from devices.fabric.mark import Mark
from devices.fabric.pairs import Sent


@dataclass(frozen=True)
class Law:
    """What ranks do, and what each of them returns.

    Args:
        ranks: how many.
        body: what each does.
        expected: what each returns.
    """

    ranks: int
    body: Callable[[World], Any]
    expected: list[Any]


LAWS: dict[str, Law] = {}


def law(expected: list[Any]) -> Callable[[Callable[[World], Any]], Callable[[World], Any]]:
    """Add a law; `expected` has an item for each rank."""

    def add(body: Callable[[World], Any]) -> Callable[[World], Any]:
        LAWS[body.__name__] = Law(len(expected), body, expected)
        return body

    return add


@law([[True, True, False, True, False, False, True]] * 3)
def lanes_start_at_zero_and_all_ranks_see_them_raised(world: World) -> list[bool]:
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


@law([[], *[[[float(number)] * 3 for number in range(1, 30)]] * 3])
def who_sees_a_lane_raised_sees_what_was_written_and_exported_before(world: World) -> list[list[float]]:
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


@law([None] * 3)
def an_export_lasts_until_as_many_have_closed_it_as_were_to_read_it(world: World) -> None:
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


@law([None] * 2)
def what_was_not_exported_cannot_be_opened(world: World) -> None:
    fabric = member("nothing").fabric
    fabric.export("for nobody", torch.ones(1), None, readers=0)
    dist.barrier()
    for peer in range(world.size):
        for name in ("for nobody", "never heard of", ("posted", 1)):
            with pytest.raises(LookupError):
                fabric.open(peer, name)
    assert fabric.holds(Read("for nobody"))


@law([(None, 0), (None, 1), (None, 2)])
def an_export_may_be_a_note_alone_and_of_a_rank_to_itself(world: World) -> tuple[Any, Any]:
    fabric = member("note").fabric
    fabric.export("note", None, world.rank, readers=1)
    found = fabric.open(world.rank, "note")
    fabric.close(world.rank, "note")
    assert fabric.holds(Read("note"))
    return found


@law([[f"first of {peer}", None, None, f"fourth of {peer}", None, None] for peer in (1, 0)])
def a_raise_has_the_note_that_it_was_made_with(world: World) -> list[object]:
    fabric = member("notes").fabric
    fabric.signal(0, 1, f"first of {world.rank}")
    fabric.signal(0, 2)
    fabric.signal(0, 4, f"fourth of {world.rank}")
    fabric.signal(1, 4)
    dist.barrier()
    peer = 1 - world.rank
    return [fabric.noted(peer, lane, value) for lane, value in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 1))]


@law([True] * 2)
def notes_and_names_come_as_they_were_given(world: World) -> bool:
    fabric, peer = member("kinds").fabric, 1 - world.rank
    mark = Mark("all_reduce", "grüße\n", 7, "float32", 3, "sum", -1, 5, "a file.py:1", (1, 2))
    notes = (None, True, 3, -2.5, "a\nb", (1, ("x", None)), mark, Sent(("collective", 1), mark), Sent(4, mark))
    for number, note in enumerate(notes):
        fabric.export(("name", number, (None, "ü")), torch.tensor([number]), note, readers=1)
        fabric.signal(1, 1 + number, note)
    fabric.signal(0, 1)
    fabric.wait([(fabric, Raised((peer,), 0, 1))], "the peer")
    found = []
    for number in range(len(notes)):
        tensor, note = fabric.open(peer, ("name", number, (None, "ü")))
        assert tensor is not None
        assert tensor.tolist() == [number]
        found.append(note)
        fabric.close(peer, ("name", number, (None, "ü")))
    noted = [fabric.noted(peer, 1, 1 + number) for number in range(len(notes))]
    return tuple(found) == notes and tuple(noted) == notes


@law([[False, True]] * 2)
def notes_of_long_ago_are_forgotten_and_the_last_are_not(world: World) -> list[bool]:
    fabric, peer = member("many notes").fabric, 1 - world.rank
    for number in range(1, 41):
        fabric.signal(0, number, number)
    fabric.wait([(fabric, Raised((peer,), 0, 40))], "the peer")
    return [fabric.noted(peer, 0, 1) is not None, all(fabric.noted(peer, 0, n) == n for n in range(36, 41))]


@law([True] * 2)
def every_dtype_and_size_arrives_bit_for_bit(world: World) -> bool:
    fabric, peer, number = member("dtypes").fabric, 1 - world.rank, 0
    bytes = torch.arange(32, dtype=torch.uint8) + 3
    for name in ("float32", "bfloat16", "float8_e4m3fn", "complex64", "bool", "int64", "uint16"):
        dtype: torch.dtype = getattr(torch, name)
        given = (bytes % 2).view(torch.bool) if dtype is torch.bool else bytes.view(dtype)
        for tensor in (given, given[:0], given.repeat(1000), given.repeat(200_000)):
            number += 1
            fabric.export(number, tensor, None, readers=1)
            fabric.signal(0, number)
            fabric.wait([(fabric, Raised((peer,), 0, number))], "the peer")
            found, _ = fabric.open(peer, number)
            assert found is not None
            assert found.dtype == dtype
            assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
            fabric.close(peer, number)
            fabric.wait([(fabric, Read(number))], "the reader")
    return True


@law([False] * 3)
def one_of_several_conditions_is_enough(world: World) -> bool:
    first, second = member("first").fabric, member("second").fabric
    if world.rank == 1:
        second.signal(0, 1)
    elif world.rank == 0:
        never = Raised((2,), 7, 1)
        first.wait([(first, never), (second, AnyOf([never, Raised((1,), 0, 1)]))], "either")
    dist.barrier()
    return first.holds(Raised((1,), 0, 1))


@law([None] * 2)
def a_wait_for_what_holds_already_returns(world: World) -> None:
    fabric = member("at once").fabric
    fabric.wait([(fabric, Raised((0,), 0, 0))], "nothing")
    fabric.wait([(fabric, Read("not there"))], "nothing")


@law([0, 1])
def a_pause_lets_others_go_on(world: World) -> int:
    fabric = member("pause").fabric
    if world.rank == 1:
        fabric.signal(0, 1)
    while not fabric.holds(Raised((1,), 0, 1)):
        fabric.pause("rank 1")
    return world.rank


@law(["gone on"] * 3)
def abort_ends_those_who_wait_here_and_only_here(world: World) -> str:
    at, other = member("aborted"), member("other").fabric
    aborted, never = at.fabric, Raised((0,), 0, 1)
    if world.rank == 0:
        dist.barrier()
        # Not where ranks take turns: such a thread has none.
        if at.communicator._scheduled or threading.current_thread() is threading.main_thread():
            # From a thread that is nobody's.
            thread = threading.Thread(target=aborted.abort)
            thread.start()
            thread.join()
        aborted.abort()
        aborted.abort()
        other.signal(0, 1)
    else:
        dist.barrier()
        # A condition of an aborted fabric is none of the other's business.
        other.wait([(aborted, Raised((0,), 9, 1)), (other, never)], "the other")
    with pytest.raises(CollectiveError, match="aborted"):
        aborted.wait([(aborted, never)], "something")
    return "gone on"


@law([None] * 2)
def peers_go_on_when_a_rank_has_left(world: World) -> None:
    fabric = member("left").fabric
    if world.rank == 0:
        fabric.export("last words", torch.ones(2), None, readers=1)
        fabric.export("many last words", torch.ones(100_000), None, readers=1)
        fabric.signal(0, 1)
        fabric.leave()
        fabric.leave()
        del fabric
        dist.barrier()
        dist.barrier()
        return
    dist.barrier()
    for name in ("last words", "many last words"):
        tensor, _ = fabric.open(0, name)
        assert tensor is not None
        assert tensor.eq(1).all()
        fabric.close(0, name)
    fabric.leave()
    dist.barrier()


@law([[False] * 4] * 2)
def a_group_that_is_opened_again_by_its_name_is_another(world: World) -> list[bool]:
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


@law([None] * 2)
def a_tensor_may_be_changed_around_and_after(world: World) -> None:
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
