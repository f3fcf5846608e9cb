"""Groups of several domains that go by schedules: those that they make where links are unequal, and those given."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction

import pytest
import ranks
from domains import domain_cases as cases
from torch.distributed import HashStore

from devices._backend import Device, Group
from devices._store import Store
from devices.domains.members import Domains
from devices.domains.planned import planned, worth
from devices.fabric.host.meeting import why_not_here
from devices.topology import Plan, Topology, replay, synthesize

reason = why_not_here()
needs_memory = pytest.mark.skipif(bool(reason), reason=f"needs shared memory: {reason}")

ONE_SLOW = Domains(((0, 1, 2), (3,), (4,)), ("slow", "fast", "too"))
GATHERED = Fraction(3, 5) / 12_000_000
SLOW = ("4e6", "4e6", "4e6", "25e6", "25e6")


def test_what_is_clearly_faster_over_unequal_links_is_worth_a_schedule() -> None:
    # 12 MB/s into the slow domain and out of it. By the verbs' own ways 3 of 5 parts leave it once for each other
    # domain, and a third of all sums is its to add up; by a schedule its own leaves it once, and it adds up nothing.
    found = {plan.schedule.verb: (plan, least, times) for plan, least, times in worth(ONE_SLOW, [4e6] * 3 + [25e6] * 2)}
    assert {verb: times for verb, (_, _, times) in found.items()} == pytest.approx(
        {"all_reduce": 4 / 3, "all_gather": 2, "reduce_scatter": 2}
    )
    per_byte = {"all_reduce": Fraction(1, 12_000_000), **dict.fromkeys(("all_gather", "reduce_scatter"), GATHERED)}
    for verb, (plan, least, _) in found.items():
        assert plan.seconds_per_byte == replay(plan).seconds_per_byte == per_byte[verb]
        assert 4 << 20 <= least <= 64 << 20


@pytest.mark.parametrize(
    ("domains", "bandwidths"),
    [
        (Domains(((0, 1), (2, 3), (4, 5)), ("a", "b", "c")), [1e7] * 6),
        (ONE_SLOW, [4e8] * 3 + [25e8] * 2),
        (Domains(((0, 1), (2, 3)), ("a", "b")), [1e8, 1e6, 1e8, 1e8]),
        (ONE_SLOW, None),
    ],
    ids=["equal links", "fast links", "two domains", "nobody knows"],
)
def test_no_schedule_is_made_where_the_verbs_own_ways_are_as_fast(
    domains: Domains, bandwidths: list[float] | None
) -> None:
    size = sum(map(len, domains.members))
    group = Group(tuple(range(size)), 0, Device("cpu", "cpu", 0), Store(HashStore()), timedelta(seconds=1), "few")
    assert planned(group, domains, bandwidths) == ()


def test_crooked_links_have_schedules_as_others_do() -> None:
    # Trees of these grow over a graph in which some rank only takes.
    domains = Domains(((0,), (1,), tuple(range(2, 10)), (10, 11)), ("a", "b", "c", "d"))
    bandwidths = [each * 1e6 for each in (11, 5.9, 24, 26, 8.3, 7.2, 2, 21, 30, 20, 24, 26)]
    [(plan, _, times)] = worth(domains, bandwidths)
    assert plan.schedule.verb == "all_reduce"
    assert plan.seconds_per_byte == replay(plan).seconds_per_byte
    # 5.9 MB/s into the slowest domain and out of it: each of four adds up a quarter, and passes 3/2 of the data.
    assert times == pytest.approx(1.5 / 5.9e6 / float(plan.seconds_per_byte))


@pytest.mark.parametrize("error", [KeyError(9), KeyboardInterrupt()], ids=["fails", "is interrupted"])
def test_a_rank_that_cannot_make_schedules_says_so_to_all_who_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(domains: Domains, bandwidths: Sequence[float]) -> None:
        raise error

    monkeypatch.setattr("devices.domains.planned.worth", fails)
    store = Store(HashStore())
    first, last = (
        Group((4, 5, 6, 7, 8), rank, Device("cpu", "cpu", rank), store, timedelta(seconds=20), "told")
        for rank in (0, 4)
    )
    links = [3e6] * 3 + [25e6] * 2
    if isinstance(error, Exception):
        with pytest.warns(RuntimeWarning, match="rank 4 found no schedules .* for KeyError: 9; all_reduce"):
            assert planned(first, ONE_SLOW, links) == ()
    else:
        with pytest.raises(KeyboardInterrupt):
            planned(first, ONE_SLOW, links)
    with pytest.warns(RuntimeWarning, match="rank 4 found no schedules .* for"):
        assert planned(last, ONE_SLOW, links) == ()


def test_groups_over_the_same_links_have_their_schedules_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(topology: Topology, verb: str) -> Plan:
        made.append(verb)
        return synthesize(topology, verb)

    monkeypatch.setattr("devices.domains.planned.synthesize", counted)
    found = [
        planned(
            Group((0, 1, 2, 3, 4), 0, Device("cpu", "cpu", 0), Store(HashStore()), timedelta(seconds=20), name),
            ONE_SLOW,
            [4.001e6] * 3 + [26e6] * 2,
        )
        for name in ("one", "other")
    ]
    assert made == ["all_reduce", "all_gather", "reduce_scatter"]
    assert [each.schedule for each in found[0]] == [each.schedule for each in found[1]]
    assert len(found[0]) == 3


@needs_memory
@pytest.mark.slow
def test_groups_go_by_the_schedules_that_they_make_and_that_they_are_given() -> None:
    for made, given in ranks.run(5, cases.by_schedules, (0, 0, 0, 1, 2), SLOW, timeout=240):
        assert "all_gather: a schedule of 2 steps, for 4194304 bytes and more, predicted 2.00 times as fast" in made
        assert "reduce_scatter: a schedule of " in made
        assert "; else all_gather in each domain, messages between them" in made
        assert "that the program gave; else a schedule of 2 steps, for 4194304 bytes and more" in given


@needs_memory
@pytest.mark.slow
def test_a_rank_that_dies_while_a_schedule_runs_is_named_in_all_domains() -> None:
    ended = ranks.outcomes(5, cases.dies_in_a_schedule, (0, 0, 0, 1, 2), SLOW, timeout=120)
    for rank in (0, 2, 3, 4):
        state, told = ended[rank]
        assert state == "returned", told
        assert "rank 1" in told[0]
        assert told[1] < 30
