"""The CPU backend over memory that the processes of a host share, against plain torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from fabric import shared_memory_cases as cases

import devices
from devices.errors import UnsupportedError
from devices.fabric.host.meeting import why_not_here

reason = why_not_here()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=f"needs shared memory: {reason}")]


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_what_plain_torch_computes(size: int, case: Callable[..., Any]) -> None:
    ranks.run(size, case)


@pytest.mark.parametrize("counts", [[5, 0, 7], [0, 0, 0], [70_001, 3, 600_000]])
def test_uneven_parts_arrive_whole(counts: list[int]) -> None:
    ranks.run(3, cases.uneven_parts, counts)


def test_tensors_in_fabric_memory_are_reduced_where_they_lie_and_given_back() -> None:
    for total, growth in ranks.run(3, cases.fabric_memory):
        assert total == 0.0, "memory that is given out again is zeros"
        assert growth < 200_000_000, "20 tensors of 40 MB, one after the other, are not all kept"


@pytest.mark.parametrize("size", [3, 5])
def test_sums_have_the_same_bits_on_all_ranks_however_each_calls(size: int) -> None:
    first, *others = ranks.run(size, cases.same_bits)
    assert len(set(first)) == len(first) // 3, "and in every turn"
    assert all(found == first for found in others)


@pytest.mark.parametrize(
    ("act", "says"), [("dies", r"rank 1 \(process \d+\) died"), ("leaves", "rank 1 has closed the group")]
)
def test_a_rank_that_goes_is_named_to_all_others(act: str, says: str) -> None:
    ended = ranks.outcomes(3, cases.raises_and_says, act)
    for rank in (0, 2):
        kind, said = ended[rank]
        assert kind == "returned", said
        error, text, seconds = said
        assert error == "CollectiveError"
        assert f"rank {rank} of 3" in text
        assert re.search(says, text), text
        # A second is what is promised; a machine that does other things may take longer.
        assert seconds < 15


def test_the_ranks_that_are_left_recover() -> None:
    ended = ranks.outcomes(4, cases.recovers)
    assert ended[1][0] == "died"
    for now, before in enumerate((0, 2, 3)):
        kind, said = ended[before]
        assert kind == "returned", said
        rank, size, total, explained = said
        assert (rank, size, total) == (now, 3, [3.0, 5.0])
        assert "ranks 0, 2, 3 of a world of 4 went on" in explained


def test_a_message_that_was_never_received_is_an_error_when_the_world_closes() -> None:
    (sender, sum_there), (receiver, sum_here) = ranks.run(2, cases.closes_with_a_message_that_was_not_received)
    assert sender == ""
    assert re.search(r"never received: 16 bytes with tag 9 of rank 0, sent at .*shared_memory_cases.py:\d+", receiver)
    assert (sum_there, sum_here) == (2.0, 2.0)


def test_an_error_of_the_program_is_not_hidden_by_what_it_leaves_behind() -> None:
    for kind, said in ranks.outcomes(2, cases.fails_with_a_message_that_was_not_received):
        assert kind == "raised"
        assert said.splitlines()[-1].startswith("KeyError")


def test_a_forked_child_has_fabric_memory_of_its_own() -> None:
    assert ranks.run(1, cases.forks_with_fabric_memory) == [[1000.0, 0.0]]


def test_ranks_recover_also_where_a_group_has_a_message_left() -> None:
    ended = ranks.outcomes(3, cases.recovers_with_a_group_that_has_a_message_left)
    assert [kind for kind, _ in ended] == ["returned", "returned", "died"], ended
    assert [said for _, said in ended[:2]] == [[2.0, 2.0]] * 2


def test_a_message_of_a_rank_that_died_is_over() -> None:
    ended = ranks.outcomes(2, cases.sees_that_a_message_will_not_come)
    assert ended[0][0] == "returned", ended
    assert re.search(r"rank 1 \(process \d+\) died", ended[0][1])


def test_many_threads_may_wait_for_messages_at_once() -> None:
    ranks.run(2, cases.many_threads_wait, 8)


def test_a_sum_that_overflows_is_infinite_and_warns_no_more_than_torch_does() -> None:
    assert ranks.run(2, cases.sums_that_overflow) == [[float("inf")] * 3] * 2


def test_an_error_is_told_and_printed_once_with_several_groups_open() -> None:
    told, printed = ranks.run(2, cases.ends_by_an_error_after_a_second_group)
    assert "rank 1 has ended" in told
    assert printed.count("ValueError: batch 7 is bad") == 1
    assert "Error in sys.excepthook" not in printed


def test_fabric_memory_may_be_freed_while_more_is_taken() -> None:
    assert ranks.run(1, cases.frees_fabric_memory_while_it_takes_more) == [0.0]


def test_all_ranks_have_the_same_bits_however_each_called() -> None:
    for size in (2, 3):
        first, *others = ranks.run(size, cases.reduces_beside_the_program_on_one_rank)
        assert all(other == first for other in others)


def test_no_file_is_made() -> None:
    assert ranks.run(2, cases.leaves_nothing_behind) == [[], []]


def test_groups_that_are_closed_leave_no_descriptor_open() -> None:
    for few, many in ranks.run(2, cases.opens_and_closes_groups, 60):
        assert many <= few + 2


def test_switched_off_gloo_serves_and_explain_says_why() -> None:
    for text in ranks.run(2, cases.explained, env={"DEVICES_FABRIC": "off"}):
        assert "gloo: rank 0: DEVICES_FABRIC=off" in text
    for text in ranks.run(2, cases.explained):
        assert "shared memory" in text


def test_fabric_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICES_FABRIC", "off")
    with pytest.raises(UnsupportedError, match="DEVICES_FABRIC=off"):
        devices.empty(3, fabric=True)
    assert devices.empty(3, 4, dtype=torch.int64).shape == (3, 4)
