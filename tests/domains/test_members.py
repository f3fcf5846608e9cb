"""What crosses between domains, and which ranks carry it."""

from __future__ import annotations

import math

import pytest

from devices.domains.members import Domains, crossings, lanes


def test_ranks_with_one_key_are_one_domain_in_the_order_of_their_first_ranks() -> None:
    domains = Domains.of([("b", "here"), ("a", "there"), ("b", "here"), ("c", "there")])
    assert domains.members == ((0, 2), (1,), (3,))
    assert domains.names == ("here", "there (1)", "there (2)")
    assert [domains.of_rank(rank) for rank in range(4)] == [0, 1, 0, 2]
    assert domains.shown([4, 5, 6, 9]) == "here (ranks 4, 6) and there (1) (rank 5) and there (2) (rank 9)"


@pytest.mark.parametrize("senders", range(1, 7))
@pytest.mark.parametrize("receivers", range(1, 7))
def test_each_element_crosses_once_from_who_has_it_to_who_is_to_have_it(senders: int, receivers: int) -> None:
    length = 5 * math.lcm(senders, receivers)
    seen = []
    ways = crossings(range(0, length + 1, length // senders), range(0, length + 1, length // receivers))
    for sender, receiver, start, stop in ways:
        for element in range(start, stop):
            assert element // (length // senders) == sender
            assert element // (length // receivers) == receiver
            seen.append(element)
    assert sorted(seen) == list(range(length))
    used = {(crossing.sender, crossing.receiver) for crossing in ways}
    assert {sender for sender, _ in used} == set(range(senders)), "all ways out are used"
    assert {receiver for _, receiver in used} == set(range(receivers)), "and all ways in"


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 3), (2, 3), (3, 2, 1), (4, 4, 2, 1)])
def test_each_element_is_added_up_by_one_rank_of_those_that_have_a_sum_of_it(sizes: tuple[int, ...]) -> None:
    length = 7 * math.lcm(*sizes)
    seen = []
    for ranks, cuts in lanes([range(0, length + 1, length // size) for size in sizes]):
        assert len(ranks) == len(sizes)
        assert list(cuts) == sorted(cuts)
        for element in range(cuts[0], cuts[-1]):
            assert [element // (length // size) for size in sizes] == list(ranks)
            seen.append(element)
    assert seen == list(range(length))
