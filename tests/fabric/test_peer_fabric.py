"""The fabric over the memory of devices, on a stand-in for that memory; it has not run on hardware."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ranks
from fabric import peer_fabric_cases as cases
from interface_cases import LAWS
from mapped_files import MappedFiles
from shared_memory import NEEDS_SHARED_MEMORY

from devices.fabric.peer import fabric as peer
from devices.fabric.peer.segments import Segments

pytestmark = [pytest.mark.slow, NEEDS_SHARED_MEMORY]


@pytest.mark.parametrize("size", sorted({law.ranks for law in LAWS.values()}))
def test_the_laws_of_a_fabric_hold_over_mapped_memory(size: int) -> None:
    for rank, found in enumerate(ranks.run(size, cases.laws)):
        assert found == {name: law.expected[rank] for name, law in LAWS.items() if law.ranks == size}


@pytest.mark.parametrize("scheduled", [False, True], ids=["through a root", "as schedules"])
def test_every_verb_is_right_over_mapped_memory_and_all_of_it_is_given_back(scheduled: bool) -> None:
    for note, left in ranks.run(3, cases.all_verbs, scheduled):
        assert note.startswith(
            "through memory that the ranks map of each other's devices, for a test; messages between"
        )
        assert left == [0, 0]


def test_every_verb_is_right_where_one_rank_alone_goes_through_host_memory() -> None:
    ranks.run(3, cases.staged_beside_others)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("none", "rank 1: it has no such memory"),
        ("too little", "rank 1: the memory of cpu:0 cannot be shared: 2097152 bytes are more than there are"),
        ("not linked", "rank 1: the memory of the device of rank 0 cannot be mapped: the devices are not linked"),
    ],
)
def test_where_one_rank_cannot_all_go_through_host_memory_and_say_why(how: str, said: str) -> None:
    for note, total, left in ranks.run(2, cases.without, how):
        assert note.startswith(f"through host memory, for a test, and the memory of devices is not mapped: {said}; ")
        assert total == 6.0
        assert not any(left)


def test_a_peer_would_read_too_early_if_the_host_did_not_wait_for_the_stream() -> None:
    assert ranks.run(2, cases.not_finished) == [False, False]


def test_a_peer_that_is_killed_is_an_error_and_what_it_had_mapped_is_freed() -> None:
    survivor, died = ranks.outcomes(2, cases.dies)
    assert died[0] == "died"
    assert survivor[0] == "returned", survivor
    said, left = survivor[1]
    assert "rank 1" in said
    assert "died" in said
    assert left == [0, 0]


def test_memory_that_a_rank_could_not_unmap_is_not_freed_and_the_rest_is_unmapped() -> None:
    (said, left), *others = ranks.run(3, cases.cannot_unmap)
    assert said == "the driver is gone it was segment 0 of rank 2 of the group, mapped by rank 0"
    # Its own is freed, as all others have left; one segment of a peer is still mapped.
    assert left == [0, 1]
    # Nobody knows which of them rank 0 still has mapped: both are kept.
    assert others == [("", [1, 0])] * 2


class Left:
    """The memory of a group that all ranks have left, asked by two threads at once."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.both = threading.Barrier(2)

    def dead(self) -> frozenset[int]:
        return frozenset()

    def holds(self, condition: object) -> bool:
        self.both.wait(60)
        return True


def test_two_threads_that_free_what_was_left_free_it_once() -> None:
    memory = MappedFiles()
    segments = Segments(memory)
    segments.add(4096)
    kept: Any = (Left(), segments)
    peer._kept.append(kept)
    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(peer.free_what_is_unmapped) for _ in range(2)]:
            each.result(60)
    assert memory.own == {}
    assert kept not in peer._kept
