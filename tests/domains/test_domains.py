"""Groups of several domains, over processes of this host that are told to be on different ones."""

from __future__ import annotations

import re

import pytest
import ranks
import torch
from domains import domain_cases as cases

from devices.fabric.host.meeting import why_not_here

reason = why_not_here()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=f"needs shared memory: {reason}")]

WORLDS = [
    ((0, 0, 1, 1), ()),
    ((0, 1, 1, 1), ("3e9", "4e9", "1e9", "2.5e9")),
    ((0, 1, 0, 2, 1), ("measure",) * 5),
]


@pytest.mark.parametrize(("domains", "links"), WORLDS, ids=["equal parts", "parts as told", "parts as measured"])
def test_every_verb_computes_what_plain_torch_does(domains: tuple[int, ...], links: tuple[str, ...]) -> None:
    told = ranks.run(len(domains), cases.every_verb, domains, links, timeout=120)
    for said in told:
        assert "island-0 (rank" in said, said
        assert "inside of them" in said
        assert "between them gloo" in said
        if links:
            assert "predicted for 64 MiB: " in said
            # Three domains that are measured as unequal may have schedules of their own.
            for verb in ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"):
                assert re.search(rf"\b{verb} (\S+ \S+ \(\S+ \S+ to \S+ \S+\)|is faster, by its schedule)", said), said
        else:
            assert "not predicted: the bandwidth of each rank's way to island-0 and island-1 is not known; set" in said
    # The rank itself is in the line above.
    assert len({said.partition("island-0 (")[2] for said in told if "inside of them shared memory" in said}) == 1


def test_messages_through_host_memory_keep_their_tags() -> None:
    ranks.run(3, cases.through_host, (0, 1, 1), timeout=90)


def test_receives_from_any_rank_go_on_beside_the_program_between_domains() -> None:
    ranks.run(3, cases.receives_from_any, (0, 1, 1), timeout=90)


def test_sums_have_the_same_bits_on_all_ranks_and_each_time() -> None:
    found = ranks.run(5, cases.same_bits, (0, 1, 0, 2, 1), ("3e9", "1e9", "1e9", "2e9", "4e9"), timeout=120)
    assert len({bits for each in found for bits in each}) == 1


def test_training_under_ddp_has_the_losses_of_a_single_process() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(cases.batch_of(step)).square().mean()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    for losses in ranks.run(4, cases.trains, (0, 0, 1, 1), timeout=120):
        assert losses == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("domains", [(0, 0, 1, 1), (0, 1, 1, 0)], ids=["its lead does not", "its lead does"])
@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("dies", "CollectiveError", ["rank 1"]),
        ("another op", "MismatchError", ["'max' on rank", "domain_cases.py"]),
        ("another size", "MismatchError", ["9 on rank", "8 on rank", "domain_cases.py"]),
        (
            "another size of all_to_all",
            "MismatchError",
            ["differ in sizes", "bytes to rank", "rank 1", "domain_cases.py"],
        ),
        ("another dtype of permute", "MismatchError", ["int32", "float32", "domain_cases.py"]),
        (
            "another size of a message",
            "MismatchError",
            ["rank 1 receives 32 bytes of float32", "rank 0, which sent 16", "domain_cases.py"],
        ),
    ],
)
def test_what_goes_wrong_in_one_domain_is_told_in_all(
    how: str, kind: str, words: list[str], domains: tuple[int, ...]
) -> None:
    ended = ranks.outcomes(4, cases.goes_wrong, domains, how, timeout=90)
    for rank in range(4):
        if rank == 1 and how == "dies":
            assert ended[rank][0] == "died"
            continue
        state, told = ended[rank]
        assert state == "returned", told
        found, text, seconds = told
        assert found == kind, text
        for word in (*words, "island-"):
            assert word in text, text
        # Two seconds are promised; a machine that does other things may take longer.
        assert seconds < 20


@pytest.mark.parametrize("domains", [(0, 1, 0, 0), (0, 1, 1, 0)], ids=["alone in its domain", "with another there"])
@pytest.mark.parametrize(
    ("how", "says"), [("raises", "it raised ValueError: batch 7 is bad"), ("is interrupted", "enough of it")]
)
def test_why_a_rank_ends_is_told_in_all_domains(how: str, says: str, domains: tuple[int, ...]) -> None:
    ended = ranks.outcomes(4, cases.goes_wrong, domains, how, timeout=90)
    for rank in (0, 2, 3):
        state, told = ended[rank]
        assert state == "returned", told
        kind, text, seconds = told
        assert kind == "CollectiveError", text
        assert "rank 1" in text
        assert says in text
        assert seconds < 30


def test_the_ranks_that_are_left_on_all_hosts_recover_also_where_a_whole_host_is_gone() -> None:
    ended = ranks.outcomes(4, cases.recovers_twice, (0, 0, 1, 1), timeout=120, grace=90)
    assert [state for state, _ in ended] == ["died", "died", "returned", "returned"], ended
    for _, (notes, sums) in ended[2:]:
        assert sums == [1.0 + 2 + 3, 2.0 + 3]
        assert "island-0 (rank 0) and island-1 (ranks 1, 2)" in notes[0]
        assert notes[1].endswith("ranks 1, 2 of a world of 3 went on after an error; shared memory")


def test_ranks_that_cannot_map_each_others_memory_are_each_for_itself_and_explain_says_why() -> None:
    for said, total in ranks.run(4, cases.cannot_map, (0, 0, 1, 1), timeout=90):
        assert total == 15
        assert "island-0 (1) (rank 0) and island-0 (2) (rank 1) and island-1 (ranks 2, 3); inside of them" in said
        assert "each rank of island-0 is for itself, for a process cannot map the memory of another: rank 1:" in said
        assert "may not be looked into" in said


def test_ranks_that_are_each_on_a_host_of_their_own_recover() -> None:
    ended = ranks.outcomes(3, cases.recovers_alone, (0, 1, 2), timeout=120, grace=90)
    assert [state for state, _ in ended] == ["returned", "died", "returned"], ended
    for _, (_, gathered, said) in (ended[0], ended[2]):
        assert gathered == [0.0, 2.0]
        assert said.endswith("ranks 0, 2 of a world of 3 went on after an error; gloo: the ranks are on 2 hosts")
