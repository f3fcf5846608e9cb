"""Schedules on topologies: each is run on real tensors, and its bytes are counted, by a replay that trusts nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import threading
from fractions import Fraction

import pytest
import torch
from graphs import small_topologies
from hypothesis import given, settings

from devices.algorithms.executor import run
from devices.algorithms.layout import Layout
from devices.algorithms.schedule import Recv, Schedule
from devices.errors import TopologyError
from devices.topology import (
    Link,
    Node,
    Plan,
    Topology,
    both,
    fat_tree,
    machines,
    networked,
    of_target,
    rails,
    replay,
    ring,
    switch,
    synthesis,
    synthesize,
    torus,
)
from devices.topology.bounds import VERBS
from devices.topology.capacity import Capacities
from devices.topology.direct import direct
from devices.topology.grown import grown_forest, grown_tree
from devices.topology.spanning import spanning_forest

DGX = machines(2, 8, inside=300, across=25)
MIXED = networked([switch(8, 450, device="cuda"), torus((2, 4), 64, device="neuron")], [50, 25])
FUSION = switch(16, [1800] * 8 + [900] * 8)
TREES = tuple(verb for verb in VERBS if verb != "all_to_all")


def reached(plan: Plan) -> Fraction:
    """Return the bandwidth that a replay finds, and check that it is what the plan says."""
    found = replay(plan)
    assert found.seconds_per_byte == plan.seconds_per_byte
    return 1 / found.seconds_per_byte


@pytest.mark.parametrize(
    ("topology", "verb", "expected"),
    [
        (DGX, "all_gather", Fraction(5200, 15)),
        (DGX, "reduce_scatter", Fraction(5200, 15)),
        (DGX, "all_reduce", Fraction(5200, 30)),
        (DGX, "broadcast", Fraction(200)),
        (DGX, "reduce", Fraction(200)),
        (DGX, "all_to_all", Fraction(50)),
        (MIXED, "all_gather", Fraction(16 * 281, 15)),
        (MIXED, "all_reduce", Fraction(153)),
        (MIXED, "all_to_all", Fraction(50)),
        (FUSION, "all_gather", Fraction(960)),
        (FUSION, "all_reduce", Fraction(720)),
        (torus((4, 4), 64), "all_gather", Fraction(16 * 256, 15)),
        (torus((4, 4), 64), "broadcast", Fraction(256)),
        (torus((4, 4), 64), "all_to_all", Fraction(2 * 2 * 4 * 64 * 16, 64 * 2)),
        (torus((2, 4), 64), "all_reduce", Fraction(8 * 256, 14)),
        (ring(5, 3), "all_gather", Fraction(5 * 6, 4)),
        (rails(3, 4, 450, 50), "all_reduce", Fraction(3 * 4 * 50, 4)),
        (fat_tree(3, 2, 2, 10), "reduce_scatter", Fraction(60, 5)),
        (switch(9, 900), "all_reduce", Fraction(8100, 16)),
    ],
    ids=lambda value: str(value) if not isinstance(value, Topology) else f"{len(value.nodes)} nodes",
)
def test_worked_values_are_reached_to_the_last_byte(topology: Topology, verb: str, expected: Fraction) -> None:
    plan = synthesize(topology, verb)
    assert reached(plan) == expected
    assert plan.ratio == 1.0
    assert 1 / plan.bound.check() == expected


def test_a_cube_of_64_chips_is_filled_to_the_last_byte() -> None:
    plan = synthesize(torus((4, 4, 4), 50), "all_gather")
    assert reached(plan) == Fraction(64 * 300, 63)
    assert replay(plan).steps <= 8


@given(small_topologies(symmetric=True))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_small_graph_with_cables_for_both_ways_is_filled(topology: Topology) -> None:
    for verb in TREES:
        plan = synthesize(topology, verb, len(topology.devices) - 1)
        assert reached(plan) == 1 / plan.bound.check()


@given(small_topologies(symmetric=False))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_plan_for_any_small_graph_is_right_and_knows_how_good_it_is(topology: Topology) -> None:
    for verb in VERBS:
        plan = synthesize(topology, verb, len(topology.devices) - 1)
        found = reached(plan)
        assert found <= 1 / plan.bound.check()
        assert plan.ratio == pytest.approx(float(found * plan.bound.seconds_per_byte))


def test_unequal_devices_have_unequal_shares_of_an_all_reduce() -> None:
    plan = synthesize(FUSION, "all_reduce")
    assert sum(plan.shares) == 1
    assert len(set(plan.shares)) > 1
    # Equal shares, a reduce_scatter and an all_gather one after the other: 480. This is half as much again.
    both_ways = (
        synthesize(FUSION, "reduce_scatter").seconds_per_byte + synthesize(FUSION, "all_gather").seconds_per_byte
    )
    assert 1 / both_ways == 480
    assert 1 / plan.seconds_per_byte == 480 * Fraction(3, 2)


def test_shares_come_in_the_order_of_ranks() -> None:
    plan = synthesize(switch(8, [1800, 900] * 4), "all_reduce")
    assert reached(plan) == Fraction(8 * 1350, 14)
    sums = {0: Fraction(0), 1: Fraction(0)}
    for chunk in plan.schedule.chunks:
        assert (chunk.buffer, chunk.part) == ("output", 0)
    # Who sums up a chunk is who sends it on without having received it whole: the root of its tree.
    whole = sum(chunk.weight for chunk in plan.schedule.chunks)
    for number, chunk in enumerate(plan.schedule.chunks):
        told = {
            rank
            for rank in range(8)
            for step in plan.schedule.program(rank)
            for action in step
            if isinstance(action, Recv) and action.chunk == number and not action.reduce
        }
        [root] = set(range(8)) - told
        sums[root % 2] += Fraction(chunk.weight, whole)
    assert (sums[0], sums[1]) == (sum(plan.shares[::2]), sum(plan.shares[1::2]))
    assert sums[0] != sums[1]


def test_bandwidths_that_are_no_round_numbers_are_filled_too() -> None:
    for topology in (torus((4, 4), 1 / 3), machines(2, 4, 300.1e9, 24.7e9), switch(5, [1 / 3, 0.7, 0.1, 2.5, 1e-3])):
        for verb in ("all_gather", "all_reduce"):
            plan = synthesize(topology, verb)
            assert plan.ratio == 1.0
            found = replay(plan, elements=100_000)
            assert float(found.seconds_per_byte) == pytest.approx(float(plan.seconds_per_byte), rel=0.01)


def test_many_devices_of_a_few_kinds_are_filled_too() -> None:
    mixed = networked([switch(48, 450, device="cuda"), torus((6, 8), 64, device="neuron")], [50, 25])
    for verb in ("all_gather", "all_reduce"):
        plan = synthesize(mixed, verb)
        assert plan.ratio == 1.0
    assert reached(plan) == 1 / plan.bound.check()


def test_a_large_graph_in_which_nothing_is_alike_still_gets_a_plan() -> None:
    whole = torus((5, 5, 3), 50)
    gone = {"device:0", "device:1"}
    damaged = Topology(whole.nodes, [link for link in whole.links if {link.source, link.target} != gone])
    for verb in ("all_gather", "broadcast"):
        plan = synthesize(damaged, verb)
        assert reached(plan) <= 1 / plan.bound.check()
        assert plan.ratio > 0.9


def damaged(whole: Topology, gone: int = -1, slow: int = -1) -> Topology:
    """Return a topology without one of its cables, or with one that has half of its bandwidth."""
    links = []
    for link in whole.links:
        ends = {link.source, link.target}
        if gone >= 0 and ends == {whole.links[gone].source, whole.links[gone].target}:
            continue
        is_slow = slow >= 0 and ends == {whole.links[slow].source, whole.links[slow].target}
        links.append(dataclasses.replace(link, bandwidth=link.bandwidth / 2) if is_slow and link.bandwidth else link)
    return Topology(whole.nodes, links)


@pytest.mark.parametrize(
    "topology",
    [
        damaged(torus((5, 5, 3), 50), gone=7),
        damaged(torus((4, 17), 50, wrap=False), slow=9),
        damaged(machines(9, 8, 450, 50), slow=-1 + len(machines(9, 8, 450, 50).links)),
        damaged(fat_tree(9, 8, 4, 50), slow=11),
    ],
    ids=["torus", "grid", "machines", "fat tree"],
)
def test_one_damaged_cable_of_many_leaves_schedules_near_their_bounds(topology: Topology) -> None:
    assert 0.995 <= synthesize(topology, "all_gather").ratio <= 1
    plan = synthesize(topology, "all_reduce")
    assert 0.995 <= plan.ratio <= 1
    assert sum(plan.shares) == 1
    assert all(share >= 0 for share in plan.shares)


@pytest.mark.parametrize("verb", ["all_gather", "all_reduce"])
def test_a_schedule_on_a_damaged_cluster_is_right(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it had more devices than trees are packed exactly for: their messages would take long.
    monkeypatch.setattr(synthesis, "EXACT", 8)
    plan = synthesize(damaged(machines(3, 4, 450, 50), slow=5), verb)
    assert reached(plan) <= 1 / plan.bound.check()


def test_a_schedule_for_devices_of_unlike_rates_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "EXACT", 8)
    plan = synthesize(switch(12, [1] * 11 + [100]), "all_reduce")
    assert reached(plan) <= 1 / plan.bound.check()


def test_links_past_a_switch_leave_no_devices_apart() -> None:
    # Of 68 devices all turns that links are looked for at are even.
    plan = synthesize(switch(68, [50] * 67 + [25]), "all_reduce")
    assert 0.995 <= plan.ratio <= 1


def unlike(whole: Topology) -> Topology:
    """Return a topology some of whose cables have a quarter of their bandwidth."""
    chance = random.Random(3)
    rates: dict[frozenset[str], float] = {}
    links = []
    for link in whole.links:
        share = rates.setdefault(frozenset((link.source, link.target)), chance.choice([1, 0.25]))
        links.append(dataclasses.replace(link, bandwidth=(link.bandwidth or 0) * share))
    return Topology(whole.nodes, links)


@pytest.mark.parametrize("count", [102, 110, 136])
def test_no_count_of_devices_behind_a_switch_leaves_some_apart(count: int) -> None:
    assert (direct(Capacities.of(switch(count, 50))).distances >= 0).all()


@pytest.mark.parametrize(
    "topology",
    [
        switch(66, [1] * 65 + [100]),
        switch(67, [(1, 3, 10, 100)[place * place % 67 % 4] for place in range(67)]),
        unlike(fat_tree(11, 6, 2, 50)),
    ],
    ids=["one fast", "four rates", "fat tree"],
)
def test_an_all_reduce_on_many_devices_of_unlike_rates_is_near_its_bound(topology: Topology) -> None:
    plan = synthesize(topology, "all_reduce")
    assert 0.99 <= plan.ratio <= 1
    assert sum(plan.shares) == 1


@pytest.mark.parametrize("whole", [machines(2, 4, 450, 50), torus((6, 11), 50)], ids=["machines", "torus"])
def test_an_all_reduce_where_a_link_is_slower_one_way_is_near_its_bound(whole: Topology) -> None:
    links = [dataclasses.replace(link, bandwidth=25) if at == 0 else link for at, link in enumerate(whole.links)]
    plan = synthesize(Topology(whole.nodes, links), "all_reduce")
    assert 0.99 <= plan.ratio <= 1
    if len(whole.devices) < 10:
        assert reached(plan) == 1 / plan.seconds_per_byte


def test_an_all_reduce_on_links_of_one_way_is_right() -> None:
    nodes = [Node(f"d:{place}") for place in range(4)]
    one_way = [Link(f"d:{place}", f"d:{(place + 1) % 4}", "", 10) for place in range(4)]
    plan = synthesize(Topology(nodes, one_way), "all_reduce")
    assert reached(plan) == 1 / plan.seconds_per_byte
    # Six of eight parts of a ring cross each link.
    assert plan.seconds_per_byte == Fraction(6, 40)


def test_links_that_do_not_join_all_devices_are_an_error() -> None:
    links = direct(Capacities.of(switch(12, 50)))
    few = dataclasses.replace(links, sources=links.sources[:4], targets=links.targets[:4], paths=links.paths[:4])
    with pytest.raises(TopologyError, match=r"they join no more than \d of 12 devices"):
        spanning_forest(few, 1.0)
    with pytest.raises(TopologyError, match="from device 0 they lead to 1 of 2 others"):
        grown_tree(0, 1.0, 3, [[(1, (0,), 0)], [(0, (0,), 1)], []], [1.0], [0.0])


@pytest.mark.slow
def test_512_chips_are_filled() -> None:
    plan = synthesize(torus((8, 8, 8), 50), "all_gather")
    assert plan.ratio >= 0.995
    # The programs of three ranks, counted by hand: all 511 other parts come in, over six links, as evenly as promised.
    for rank in (0, 77, 511):
        received: dict[str, int] = {}
        for step in plan.schedule.program(rank):
            for action in step:
                if type(action).__name__ == "Recv":
                    before = plan.route(action.peer, rank, action.chunk)[-2]
                    received[before] = received.get(before, 0) + plan.schedule.chunks[action.chunk].weight
        whole = sum(chunk.weight for chunk in plan.schedule.chunks if (chunk.buffer, chunk.part) == ("output", 0))
        assert sum(received.values()) == 511 * whole
        assert len(received) == 6
        assert max(received.values()) <= 511 * whole / 6 / 0.995


def test_a_plan_can_be_written_and_its_schedule_read_back() -> None:
    plan = synthesize(torus((2, 4), 64, device="neuron"), "all_reduce")
    data = json.loads(plan.to_json())
    assert Schedule.from_json(json.dumps(data["schedule"])) == plan.schedule
    assert Fraction(data["bound"]) == plan.bound.seconds_per_byte == Fraction(data["seconds_per_byte"])
    messages = sum(len(step) for rank in range(8) for step in plan.schedule.program(rank)) / 2
    assert len(data["routes"]) == messages
    for source, target, _, _, names in data["routes"]:
        assert (names[0], names[-1]) == (f"neuron:{source}", f"neuron:{target}")


def test_the_executor_over_exchange_runs_a_plan() -> None:
    plan = synthesize(MIXED, "all_reduce")
    mail: dict[tuple[int, int], list[torch.Tensor]] = {}
    ready = threading.Condition()

    class Exchange:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __call__(self, sends: list, recvs: list) -> Exchange:
            with ready:
                for message in sends:
                    mail.setdefault((self.rank, message.peer), []).append(message.tensor.clone())
                ready.notify_all()
                for message in recvs:
                    box = mail.setdefault((message.peer, self.rank), [])
                    assert ready.wait_for(lambda box=box: bool(box), 60)
                    message.tensor.copy_(box.pop(0))
            return self

        def wait(self) -> None:
            pass

        def is_completed(self) -> bool:
            return True

    tensors = [torch.arange(1000.0, dtype=torch.float64) * (rank + 1) for rank in range(16)]
    expected = torch.stack(tensors).sum(0)
    threads = [
        threading.Thread(
            target=run,
            args=(plan.schedule, rank, Exchange(rank), Layout(plan.schedule, (1000,), tensor, {}, {0: tensor})),
        )
        for rank, tensor in enumerate(tensors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tensor in tensors:
        assert torch.equal(tensor, expected)


def test_data_that_does_not_divide_evenly_is_still_right() -> None:
    for verb in VERBS:
        replay(synthesize(DGX, verb), elements=17)
        replay(synthesize(MIXED, verb), elements=5)


def test_a_plan_that_lies_is_found_out_by_the_replay() -> None:
    plan = synthesize(ring(4, 1), "all_gather")
    quiet = Schedule("all_gather", 4, plan.schedule.chunks, lambda rank: plan.schedule.program(rank)[:1])
    with pytest.raises(TopologyError, match="has wrong data in part"):
        replay(dataclasses.replace(plan, schedule=quiet))
    with pytest.raises(TopologyError, match="between which there is no link"):
        replay(dataclasses.replace(plan, topology=Topology(plan.topology.nodes, plan.topology.links[2:])))
    other = Topology([*plan.topology.nodes[::-1]], plan.topology.links)
    with pytest.raises(TopologyError, match="has a route from"):
        replay(dataclasses.replace(plan, topology=other, _route=lambda source, target, chunk, reduces: (0, 1)))
    through = dataclasses.replace(
        plan, _route=lambda source, target, chunk, reduces: (source, (source + 1) % 4, (source + 2) % 4, target)
    )
    with pytest.raises(TopologyError, match=r"is a device|has a route"):
        replay(through)


def test_one_device_needs_no_messages() -> None:
    for verb in VERBS:
        plan = synthesize(switch(1, 5), verb)
        assert replay(plan, elements=3).messages == 0
        assert plan.ratio == 1.0


def test_switches_behind_switches_carry_what_they_can() -> None:
    nodes = [Node(f"d:{place}") for place in range(4)] + [Node(name, "switch") for name in ("a", "b", "top")]
    links = [Link(f"d:{place}", "a" if place < 2 else "b", "", 10) for place in range(4)]
    links += [Link("a", "top", "", 4), Link("b", "top", "", 6)]
    whole = Topology(nodes, both(*links))
    # Half of the data must leave two devices, of which 4 can.
    assert reached(synthesize(whole, "all_gather")) == 8
    assert reached(synthesize(whole, "broadcast", 3)) == 4


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: synthesize(ring(4), "all_gather"), "is not known"),
        (lambda: synthesize(ring(4, 1), "all_reduced"), "did you mean 'all_reduce'"),
        (lambda: synthesize(Topology([Node("a"), Node("b")]), "all_gather"), "no path leads"),
        (lambda: synthesize(ring(4, 1), "reduce", 9), "root 9 is not among 4"),
    ],
)
def test_what_cannot_be_scheduled_is_an_error_that_says_why(ask: object, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        ask()  # type: ignore[operator]


def test_ranks_in_another_order_reach_the_same() -> None:
    for turned in itertools.islice(itertools.permutations(torus((2, 4), 64).nodes), 0, 40_000, 9_001):
        assert reached(synthesize(Topology(turned, torus((2, 4), 64).links), "all_gather")) == Fraction(8 * 256, 7)


@pytest.mark.parametrize("topology", [torus((4, 4, 8), 50), fat_tree(16, 16, 8, 50)], ids=["torus 4x4x8", "fat tree"])
def test_an_all_to_all_on_many_alike_devices_has_even_shares_of_all_ways(topology: Topology) -> None:
    plan = synthesize(topology, "all_to_all")
    assert plan.ratio == 1.0
    # Half of what all give crosses the middle of the long axis, or leaves by the only cable of a device.
    count = len(topology.devices)
    expected = Fraction(count * count, 4 * count) / (2 * 16 * 50) if count == 128 else Fraction(count - 1, count) / 50
    assert plan.seconds_per_byte == plan.bound.check() == expected


def test_trees_that_are_near_enough_on_many_devices_are_taken() -> None:
    # Seven tori on a network: the trees that are found for one chip miss the least time by less than a ten thousandth,
    # and others would be looked for for minutes.
    plan = synthesize(of_target("project-rainier").part(7), "all_gather")
    assert 0.999 <= plan.ratio <= 1


def test_a_root_that_has_much_of_the_data_has_several_trees() -> None:
    capacities = Capacities.of(torus((3, 4), 1))
    shares = dict.fromkeys(capacities.endpoints, Fraction(1, 22))
    shares[capacities.endpoints[5]] = Fraction(1, 2)
    forest = grown_forest(capacities, shares)
    roots = forest.roots.tolist()
    carried = [
        sum(units for root, units in zip(roots, forest.units, strict=True) if root == rank) for rank in range(12)
    ]
    assert [Fraction(units, sum(carried)) for units in carried] == list(shares.values())
    assert roots.count(5) == 32
    # Half of the data leaves one device by four links, so that nothing takes less than an eighth; and on one tree of
    # its own one link of them would carry all of the half.
    assert Fraction(1, 8) <= forest.time(capacities.arcs) < Fraction(1, 4)
