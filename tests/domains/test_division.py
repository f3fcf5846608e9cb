"""Which native groups the ranks of a backend make where its hardware has none of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from devices.domains.card import Card
from devices.domains.division import Division
from devices.domains.parts import legal_parts
from devices.domains.vendors import Island, Vendors

CPU = Card("cpu", "cpu:0", 0, "cpu", "a", "memory of a", (), None, None)


def chips(numbers: Sequence[int], host: str = "a") -> list[Card]:
    """Return ranks on chips of one host, whose runtime takes 1, 2, 4, 8, 16 or a multiple of 32 of them."""
    return [Card("chip", f"chip:{at}", at, "neuron", host, "", (), (1, 2, 4, 8, 16), 32, True) for at in numbers]


@pytest.mark.parametrize(
    ("first", "count", "parts"),
    [
        (0, 3, [[0, 1], [2]]),
        (1, 3, [[1], [2, 3]]),
        (0, 4, [[0, 1, 2, 3]]),
        (0, 5, [[0, 1, 2, 3], [4]]),
        (3, 5, [[3], [4, 5, 6, 7]]),
        (1, 5, [[1, 2, 3, 4], [5]]),
        (0, 7, [[0, 1, 2, 3], [4, 5], [6]]),
        (0, 12, [list(range(8)), [8, 9, 10, 11]]),
        (0, 40, [list(range(32)), list(range(32, 40))]),
        (0, 64, [list(range(64))]),
    ],
)
def test_the_largest_group_comes_first_and_begins_where_hardware_wants_it(
    first: int, count: int, parts: list[list[int]]
) -> None:
    cards = [CPU] * first + chips(range(first, first + count))
    found, reasons = Division(cards).of(range(len(cards)))
    assert sorted(part for part in found if part[0] >= first) == parts
    assert len(reasons) == (len(parts) > 1)


def test_a_part_has_no_gap_where_there_is_one_without() -> None:
    places = [("a", number) for number in (0, 5, 6, 7, 8)]
    assert legal_parts(places, (1, 2, 4).__contains__) == [[0], [1, 2, 3, 4]]
    assert legal_parts(places, (1, 2).__contains__) == [[0, 1], [2, 3], [4]], "a pair with one is better than none"


def test_it_is_said_who_is_divided_and_why() -> None:
    vendors = Vendors([CPU, *chips([1, 2, 3])])
    assert vendors.domains(range(4)).shown(range(4)) == (
        "cpu on a (rank 0) and chip (1) (rank 1) and chip (2) (ranks 2, 3)"
    )
    assert vendors.divided(range(4)) == (
        "ranks 1, 2, 3 (chip) are 2 domains (1 and 2, 3): backend 'chip' has no groups of 3; legal sizes are "
        "[1, 2, 4, 8, 16] or a multiple of 32"
    )


def test_groups_are_divided_within_the_domains_of_the_world_and_by_the_same_rule() -> None:
    vendors = Vendors([CPU, *chips(range(1, 6))])
    assert vendors.domains(range(6)).members == ((0,), (1, 2, 3, 4), (5,))
    assert vendors.domains((0, 2, 5)).members == ((0,), (1,), (2,)), "chips 2 and 5 were not started together"
    assert (
        vendors.divided((0, 2, 5))
        == "ranks 2, 5 (chip) are 2 domains (2 and 5): they are in different domains of the world"
    )
    assert vendors.domains((1, 2, 3)).members == ((0,), (1, 2))
    assert "no groups of 3" in vendors.divided((1, 2, 3))
    assert vendors.opens_natively((1, 2))
    assert vendors.opens_natively((5,))
    assert not vendors.opens_natively((4, 5))
    assert not vendors.opens_natively((1, 2, 3))


def test_a_group_of_a_world_that_is_one_domain_is_divided_too() -> None:
    vendors = Vendors(chips(range(8)))
    vendors.open(range(8), ())
    assert vendors.opens_natively(range(8))
    assert vendors.domains(range(5)).members == ((0, 1, 2, 3), (4,))
    assert vendors.domains(range(1, 8)).members == ((0,), (1, 2), (3, 4, 5, 6))
    assert "no groups of 5; legal sizes are" in vendors.divided(range(5))
    assert vendors.opens_natively(range(4))


def test_hosts_of_unequal_devices_are_divided_by_host() -> None:
    alike = Division([CPU, *chips([1, 2]), *chips([1, 2], "b")])
    assert alike.of(range(5)) == ([[0], [1, 2, 3, 4]], [])
    found, [why] = Division([CPU, *chips([1, 2]), *chips([0, 1, 2], "b")]).of(range(6))
    assert found == [[0], [1, 2], [3, 4], [5]]
    assert "has the same devices of each host" in why
    assert "no groups of 3" in why


@pytest.mark.parametrize(
    ("each", "parts"),
    [
        (2, [[0, 1, 2, 3]]),
        (3, [[0, 1], [2], [3, 4], [5]]),
        (5, [[0, 1, 2, 3], [4], [5, 6, 7, 8], [9]]),
        (6, [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]),
    ],
)
def test_no_part_is_over_hosts_of_which_it_has_unequal_devices(each: int, parts: list[list[int]]) -> None:
    division = Division([*chips(range(each)), *chips(range(each), "b")])
    found, reasons = division.of(range(2 * each))
    assert sorted(found) == parts
    assert len(reasons) == (len(parts) > 1)
    everyone = Division([*chips(range(4)), *chips(range(4), "b")])
    some, _ = everyone.of([*range(3), *range(4, 7)])
    assert sorted(some) == [[0, 1], [2], [4, 5], [6]], "a group of a world is divided so too"


def test_whole_hosts_are_a_part_where_so_many_are_legal() -> None:
    hosts = [card for host in "abc" for card in chips(range(4), host)]
    assert sorted(Division(hosts).of(range(12))[0]) == [list(range(8)), [8, 9, 10, 11]]


def test_of_parts_over_several_hosts_there_is_one_at_most() -> None:
    hosts = [card for host in "abcdef" for card in chips(range(8), host)]
    by_host = [list(range(at, at + 8)) for at in range(0, 48, 8)]
    assert sorted(Division(hosts).of(range(48))[0]) == by_host, "and not 32 and 16, whose runtimes have one address"


def test_ranks_that_were_started_together_are_a_domain_as_long_as_all_are_there() -> None:
    started = [replace(card, bound=("that of process 7", 2)) for card in chips([2, 3])]
    assert Division([CPU, *started]).of(range(3)) == ([[0], [1, 2]], [])
    found, [why] = Division([*started, *chips([4, 5])]).of(range(4))
    assert sorted(found) == [[0, 1], [2, 3]]
    assert "ranks 0, 1 (chip) was started before, for 2 ranks, and opens no other groups" in why
    lost = [replace(card, bound=("that of process 7", 4)) for card in chips([2, 3])]
    found, [why] = Division([CPU, *lost]).of(range(3))
    assert found == [[0], [1], [2]]
    assert "ranks 1, 2 (chip) was started before, for 4 ranks, of which 2 are gone" in why


GPU = Card("gpu", "gpu:0", 0, "cuda", "a", "", (), None, None)


def beside_a_fabric(*rest: Card) -> Vendors:
    """Return ranks of which a fabric joins the first four, three chips and a GPU."""
    return Vendors([*chips(range(3)), GPU, *rest], [Island("cable", ((0, 1, 2, 3),), "air")])


def test_ranks_that_no_fabric_joins_are_as_few_domains_as_without_those_that_one_does() -> None:
    vendors = beside_a_fabric(*chips(range(3, 7)), CPU, CPU)
    world = range(10)
    assert vendors.domains(world).members == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    assert vendors.divided(world) == ""
    vendors.open(world, [])
    assert vendors.domains((1, 4, 6)).members == ((0,), (1, 2)), "rank 1 was not started with ranks 4 and 6"
    assert vendors.opens_natively((4, 5, 6, 7))
    assert vendors.opens_natively((5, 6))
    assert vendors.opens_natively((0, 1))
    assert not vendors.opens_natively((2, 4))


def test_ranks_that_a_fabric_does_not_join_after_all_are_divided_with_the_others_and_so_are_the_worlds_groups() -> None:
    vendors = beside_a_fabric(*chips([3]))
    world = range(5)
    assert vendors.domains(world).members == ((0, 1, 2, 3), (4,))
    [join] = vendors.joins(world)
    vendors.open(world, [join.key])
    assert vendors.domains(world, [join.key]).members == ((0, 1, 2, 4), (3,))
    assert vendors.opens_natively((2, 4))
    vendors.open((0, 1), [])
    assert vendors.opens_natively((2, 4)), "by the domains of the world, whatever its groups are"


def test_a_runtime_of_which_a_fabric_joins_some_ranks_has_lost_none_of_them() -> None:
    started = [replace(card, bound=("that of process 7", 4)) for card in chips(range(4))]
    fabric = [Island("cable", ((0, 1, 4),), "air")]
    vendors = Vendors([*started, GPU], fabric)
    assert vendors.domains(range(5)).members == ((0, 1, 4), (2, 3))
    assert vendors.divided(range(5)) == ""
    lost = Vendors([*(replace(card, bound=("that of process 7", 5)) for card in started), GPU], fabric)
    assert lost.domains(range(5)).members == ((0, 1, 4), (2,), (3,))
    assert "was started before, for 5 ranks, of which 1 is gone, and opens no other groups" in lost.divided(range(5))
