from __future__ import annotations

import dataclasses
import itertools
import time
from fractions import Fraction

import pytest
from graphs import least_leaving, partitions, small_topologies, subsets
from hypothesis import given, settings

from devices.errors import TopologyError
from devices.topology import (
    Bound,
    Link,
    Node,
    Topology,
    bound,
    fat_tree,
    machines,
    networked,
    rails,
    ring,
    switch,
    torus,
)
from devices.topology.bounds import VERBS
from devices.topology.graph import both

DGX = machines(2, 8, inside=300, across=25)
CUBE = torus((4, 4, 4), 50)
MIXED = networked([switch(8, 450, device="cuda"), torus((2, 4), 64, device="neuron")], [50, 25])
FUSION = switch(16, [1800] * 8 + [900] * 8)


def at_most(topology: Topology, verb: str, root: int = 0) -> Fraction:
    found = bound(topology, verb, root)
    assert found.check() == found.seconds_per_byte
    return 1 / found.seconds_per_byte


def test_the_all_gather_of_two_dgx_a100_is_bound_by_what_enters_one_gpu() -> None:
    # 15 of 16 parts must enter each GPU, at 300 + 25.
    assert at_most(DGX, "all_gather") == Fraction(16 * 325, 15)
    assert float(at_most(DGX, "all_gather")) == pytest.approx(346.667, abs=5e-4)
    [side] = bound(DGX, "all_gather").sides
    assert len({node.name for node in DGX.devices} - set(side)) == 1


@pytest.mark.parametrize(
    ("topology", "all_gather", "all_reduce"),
    [
        # Sixteen sets of one device: 30 bytes leave for each byte, at 16 * 325.
        (DGX, Fraction(5200, 15), Fraction(5200, 30)),
        (CUBE, Fraction(64 * 300, 63), Fraction(64 * 300, 126)),
        # The all_gather: what enters a Trainium, 4 * 64 + 25. The all_reduce: eight Trainium and all H100 as one set
        # of which 8 * 25 leave, so that 16 bytes leave at 8 * 281 + 200.
        (MIXED, Fraction(16 * 281, 15), Fraction(8 * 281 + 200, 16)),
        (FUSION, Fraction(16 * 900, 15), Fraction(8 * 1800 + 8 * 900, 30)),
    ],
)
def test_the_worked_values_come_out_exactly(topology: Topology, all_gather: Fraction, all_reduce: Fraction) -> None:
    assert at_most(topology, "all_gather") == all_gather
    assert at_most(topology, "reduce_scatter") == all_gather
    assert at_most(topology, "all_reduce") == all_reduce


def test_the_worked_values_are_those_that_were_published() -> None:
    found = [round(float(at_most(each, verb)), 3) for each in (MIXED, FUSION) for verb in ("all_gather", "all_reduce")]
    assert found == [299.733, 153.0, 960.0, 720.0]


def test_a_broadcast_is_bound_by_the_least_flow_from_its_root() -> None:
    assert at_most(DGX, "broadcast", 3) == at_most(DGX, "reduce", 3) == 8 * 25
    assert at_most(CUBE, "broadcast") == 300
    assert at_most(switch(3, [1, 2, 4]), "broadcast", 0) == 1
    assert at_most(switch(3, [1, 2, 4]), "broadcast", 2) == 1
    assert at_most(switch(3, [2, 3, 4]), "reduce", 2) == 2


def test_an_all_to_all_is_bound_by_half_of_a_torus_and_by_a_slow_network() -> None:
    # Half of the cube, 32 by 32 pairs of 1/64, over two planes of 16 links.
    assert at_most(CUBE, "all_to_all") == Fraction(2 * 16 * 50 * 64, 32 * 32)
    assert at_most(DGX, "all_to_all") == Fraction(8 * 25 * 16, 8 * 8)
    assert at_most(switch(16, 9), "all_to_all") == Fraction(9 * 16, 15)


def test_a_switch_that_reduces_lifts_the_bound_of_an_all_reduce() -> None:
    assert at_most(switch(8, 450), "all_reduce") == Fraction(8 * 450, 14)
    assert at_most(switch(8, 450, reduces=True), "all_reduce") == 450
    assert at_most(switch(8, 450, reduces=True), "all_gather") == Fraction(8 * 450, 7)


def test_islands_that_bridges_join_are_bound_as_worked_out_by_hand() -> None:
    # max(M / min, 2 (k - 1) M / sum) for k islands whose bridges are 1, 2 and 6, each island fast inside.
    islands = [switch(4, 100, device=f"island{number}", name=f"inside{number}") for number in range(3)]
    nodes = [node for island in islands for node in island.nodes]
    links = [link for island in islands for link in island.links]
    bridges = [Link(f"inside{number}", "outside", "", rate) for number, rate in enumerate((1, 2, 6))]
    whole = Topology([*nodes, Node("outside", "switch")], [*links, *both(*bridges)])
    # The third island can use no more than the others have.
    assert at_most(whole, "all_reduce") == min(Fraction(1), Fraction(1 + 2 + 3, 2 * 2))


@given(small_topologies())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_no_cut_of_a_small_graph_is_worse_than_the_witness(topology: Topology) -> None:
    names = [node.name for node in topology.devices]
    size = len(names)
    sides = [side for side in subsets(names) if side and len(side) < size]
    out = {frozenset(side): least_leaving(topology, side) for side in sides}
    worst = {
        "all_gather": max(Fraction(len(side), size) / out[side] for side in out),
        "reduce_scatter": max(Fraction(size - len(side), size) / out[side] for side in out),
        "all_to_all": max(Fraction(len(side) * (size - len(side)), size) / out[side] for side in out),
        "broadcast": max(1 / out[side] for side in out if names[size - 1] in side),
        "reduce": max(1 / out[side] for side in out if names[size - 1] not in side),
    }
    for verb, expected in worst.items():
        found = bound(topology, verb, size - 1)
        assert found.check() == found.seconds_per_byte == expected, verb


@given(small_topologies())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_no_partition_of_a_small_graph_is_worse_for_an_all_reduce_than_the_witness(topology: Topology) -> None:
    names = [node.name for node in topology.devices]
    back = topology.reversed()
    worst = max(
        Fraction(2 * (len(parts) - 1)) / sum(least_leaving(graph, part) for part in parts)
        for parts in partitions(names)
        for graph in (topology, back)
        if len(parts) > 1
    )
    cuts = max(1 / least_leaving(topology, side) for side in subsets(names) if 0 < len(side) < len(names))
    found = bound(topology, "all_reduce")
    assert found.check() == found.seconds_per_byte == max(worst, cuts)


def test_one_device_needs_no_time() -> None:
    for verb in VERBS:
        found = bound(switch(1, 5), verb)
        assert found.check() == 0
        assert found.seconds(10**9) == 0
        assert "inf" in str(found)


def test_a_witness_that_does_not_show_its_bound_is_found_out() -> None:
    found = bound(DGX, "all_gather")
    with pytest.raises(TopologyError, match="the witness shows"):
        dataclasses.replace(found, seconds_per_byte=found.seconds_per_byte * 2).check()
    with pytest.raises(TopologyError, match="the witness shows"):
        dataclasses.replace(found, sides=(found.sides[0][1:],)).check()
    reduced = bound(DGX, "all_reduce")
    with pytest.raises(TopologyError, match="the witness shows"):
        dataclasses.replace(reduced, sides=reduced.sides[1:]).check()
    with pytest.raises(TopologyError, match="no node 'gpu'"):
        dataclasses.replace(found, sides=(("gpu",),)).check()


def test_a_bound_says_what_it_is_in_words() -> None:
    found = bound(machines(2, 8, inside=300e9, across=25e9), "all_gather")
    assert str(found) == (
        "all_gather: at most 3.46667e+11 bytes/s: for each byte 15/16 must leave 18 nodes, and 3.25e+11 bytes/s can"
    )
    assert found.seconds(346_666_666_667) == pytest.approx(1)


def test_a_bound_that_rests_on_what_is_announced_says_so() -> None:
    names = ("trainium4:0", "trainium4:1")
    for status, is_speculative in {"announced": True, "assumed": True, "documented": False, "": False}.items():
        pair = Topology(list(map(Node, names)), both(Link(*names, "nvlink", 1.8e12, status=status)))
        found = bound(pair, "all_reduce")
        assert found.is_speculative is is_speculative
        assert ("speculative" in str(found)) is is_speculative


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: bound(ring(4), "all_gather"), "bandwidth of .* is not known"),
        (lambda: bound(Topology([Node("a"), Node("b")]), "all_gather"), "no path leads from 'a' to 'b'"),
        (lambda: bound(ring(4, 1), "allgather"), "did you mean 'all_gather'"),
        (lambda: bound(ring(4, 1), "broadcast", 4), "root 4 is not among 4"),
        (lambda: bound(Topology([]), "all_gather"), "no devices"),
    ],
)
def test_what_has_no_bound_is_an_error_that_says_why(ask: object, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        ask()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("topology", "inwards"),
    [(rails(8, 8, 450, 50), 8), (fat_tree(8, 8, 4, 50), 1), (switch(72, 900), 1), (torus((2, 4, 8), 50), 1)],
    ids=["rails", "fat tree", "NVL72", "torus"],
)
def test_what_is_alike_is_bound_by_hand(topology: Topology, inwards: int) -> None:
    """A machine of rails is worse than a device of it: 8 parts at 8 * 50; elsewhere it is what enters one device."""
    size = len(topology.devices)
    rate = 400 if inwards == 8 else sum(link.bandwidth or 0 for link in topology.links_from("device:0"))
    assert at_most(topology, "all_gather") == Fraction(size * rate) / (size - inwards)


def test_floats_are_taken_as_they_are() -> None:
    third = 1 / 3
    assert at_most(ring(3, third), "broadcast") == 2 * Fraction(third)


def test_devices_in_another_order_have_the_same_bound() -> None:
    for turned in itertools.islice(itertools.permutations(MIXED.nodes), 0, 40_000, 13_007):
        assert at_most(Topology(turned, MIXED.links), "all_reduce") == 153


@pytest.mark.slow
def test_4096_devices_take_less_than_ten_times_what_was_promised() -> None:
    for topology in (torus((16, 16, 16), 50), fat_tree(128, 32, 16, 50)):
        for verb in ("all_gather", "all_reduce"):
            begun = time.process_time()
            found: Bound = bound(topology, verb)
            assert time.process_time() - begun < 150
            assert found.check() == found.seconds_per_byte
