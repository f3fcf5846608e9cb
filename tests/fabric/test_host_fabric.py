"""The fabric that the processes of a host share: the laws of `Fabric`, the executor, and the verbs over it."""

from __future__ import annotations

import pytest
import ranks
from fabric import host_fabric_cases as cases
from interface_cases import LAWS
from shared_memory import NEEDS_SHARED_MEMORY

pytestmark = [pytest.mark.slow, NEEDS_SHARED_MEMORY]


@pytest.mark.parametrize("size", sorted({law.ranks for law in LAWS.values()}))
def test_the_laws_of_a_fabric_hold_among_processes(size: int) -> None:
    for rank, found in enumerate(ranks.run(size, cases.laws)):
        assert found == {name: law.expected[rank] for name, law in LAWS.items() if law.ranks == size}


@pytest.mark.parametrize("size", [2, 3])
def test_the_executor_computes_every_schedule_as_plain_torch_does(size: int) -> None:
    for number in ranks.run(size, cases.schedules_compute_their_verbs):
        assert number > 100


@pytest.mark.parametrize("scheduled", [False, True], ids=["through a root", "as schedules"])
def test_all_verbs_give_what_plain_torch_computes(scheduled: bool) -> None:
    for number in ranks.run(3, cases.all_verbs, scheduled):
        assert number > 100


def test_a_message_is_taken_from_whoever_sends_first() -> None:
    assert ranks.run(3, cases.takes_messages_from_anyone) == [[1.0, 2.0], [], []]


def test_what_lies_in_fabric_memory_is_read_there_and_the_rest_is_copied() -> None:
    _, found = ranks.run(2, cases.exports_lie_where_they_are)
    assert found == {"there": (3000, [2.0]), "elsewhere": (5000, [1.0])}


def test_exports_are_given_back_when_they_were_read_and_more_than_fit_is_an_error() -> None:
    for said, growth in ranks.run(2, cases.many_exports_and_their_memory):
        assert "are still to be read by peers" in said
        assert growth < 100_000_000, "200 exports of 2 MB are not all kept"


def test_nothing_is_left_behind() -> None:
    for files, descriptors in ranks.run(2, cases.leaves_nothing_behind):
        assert files == []
        assert descriptors <= 2


def test_whatever_goes_wrong_on_a_rank_the_others_are_told() -> None:
    for rank, found in enumerate(ranks.run(3, cases.errors_of_all_kinds)):
        kinds = {name: kind for name, (kind, _, _) in found.items()}
        said = {name: text for name, (_, text, _) in found.items()}
        assert kinds["mismatch"] == kinds["other verb"] == "MismatchError"
        assert "differ in size" in said["mismatch"]
        assert "differ in verb" in said["other verb"]
        for name in ("mismatch", "other verb"):
            assert "rank 1" in said[name]
            assert "host_fabric_cases.py:" in said[name]
        if rank == 1:
            continue
        assert kinds["late"] == "CollectiveTimeoutError"
        assert "the signal failed: the timeout of 1 s is up, and it waits for rank 1 (process" in said["late"]
        assert "rank 1 has closed the group" in said["left"]
        for name in ("failed", "waited"):
            assert "rank 1 was in it when it raised KeyboardInterrupt: somebody pressed a key" in said[name]
        assert "rank 1 aborted the group" in said["polled"]
        # Far from the timeout, on a machine that does other things as well.
        assert all(seconds < 20 for name, (_, _, seconds) in found.items())


@pytest.mark.parametrize(
    ("case", "says"), [(cases.a_rank_dies, r") died"), (cases.a_rank_raises, "it raised KeyError: 'batch 7 is bad'")]
)
def test_a_rank_that_ends_is_named_with_its_error(case: object, says: str) -> None:
    ended = ranks.outcomes(3, case)  # type: ignore[arg-type]
    for rank in (0, 2):
        kind, said = ended[rank]
        assert kind == "returned", said
        error, text, seconds = said
        assert error == "CollectiveError"
        assert "rank 1" in text
        assert says in text
        assert seconds < 20
