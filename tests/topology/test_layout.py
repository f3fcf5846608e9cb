from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from by_hand import busiest, said
from graphs import small_topologies
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import ArgumentError, MeshError, TopologyError
from devices.topology import (
    Link,
    Node,
    Topology,
    both,
    fat_tree,
    layout,
    layout_seconds,
    machines,
    networked,
    of_target,
    rails,
    ring,
    switch,
    torus,
)
from devices.topology.shapes import torus_shape

TRAFFIC = {"dp": 8, "tp": 96}


BRIDGED = Topology(
    [Node(f"d:{place}") for place in (0, 3, 1, 4, 2, 5)],
    both(
        *(
            Link(f"d:{one}", f"d:{other}", bandwidth=9)
            for one, other in ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3))
        ),
        *(Link(f"d:{one}", f"d:{one + 3}", bandwidth=1) for one in range(3)),
    ),
)


def all_orders(count: int) -> Iterator[tuple[int, ...]]:
    """Yield one of each set of orders that differ only in where along its axes a mesh begins."""
    return ((0, *rest) for rest in itertools.permutations(range(1, count)))


@pytest.mark.parametrize(
    ("topology", "shape", "sizes"),
    [
        (ring(6, 3), (6,), (2, 3)),
        (ring(6, 3), (6,), (3, 2)),
        (torus((2, 3), 3), (2, 3), (3, 2)),
        (torus((2, 3), 3, wrap=False), (2, 3), (2, 3)),
        (torus((2, 3), 3, wrap=False), (2, 3), (6,)),
        (BRIDGED, None, (2, 3)),
        (BRIDGED, None, (3, 2)),
        (machines(2, 3, 9, 1), None, (2, 3)),
        (rails(3, 2, 9, 2), None, (6,)),
        (fat_tree(3, 2, 2, 4, 1), None, (3, 2)),
        (networked([switch(2, 8, device="a"), ring(4, 2, device="b")], [1, 1]), None, (3, 2)),
        (torus((2, 4), 3), (2, 4), (4, 2)),
        (torus((2, 2, 2), 3, wrap=(True, False, False)), (2, 2, 2), (2, 4)),
        (rails(2, 4, 9, 2), None, (2, 4)),
    ],
    ids=str,
)
def test_no_order_of_a_few_devices_is_faster(
    topology: Topology, shape: tuple[int, ...] | None, sizes: tuple[int, ...]
) -> None:
    axes = dict(zip(("dp", "tp")[-len(sizes) :], sizes, strict=True))
    traffic = [TRAFFIC[axis] for axis in axes]
    pairs = said(topology, shape)
    least = min(busiest(pairs, sizes, order, traffic) for order in all_orders(math.prod(sizes)))
    found = layout(topology, axes, {axis: TRAFFIC[axis] for axis in axes})
    assert found.proven
    assert busiest(pairs, sizes, found.order, traffic) == least
    assert found.seconds == pytest.approx(float(least))
    assert found.bound <= float(least) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(small_topologies(devices=6, symmetric=True), st.data())
def test_no_order_is_faster_on_topologies_drawn_at_random(topology: Topology, data: st.DataObject) -> None:
    count = len(topology.devices)
    lengths = data.draw(st.sampled_from([each for each in range(1, count + 1) if count % each == 0]))
    sizes, traffic = (count // lengths, lengths), (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    pairs = said(topology, torus_shape(topology))
    orders = list(all_orders(count))
    least = min(busiest(pairs, sizes, order, traffic) for order in orders[:: max(1, len(orders) // 24)])
    found = layout(topology, {"a": sizes[0], "b": sizes[1]}, {"a": traffic[0], "b": traffic[1]})
    assert found.proven
    assert busiest(pairs, sizes, found.order, traffic) == pytest.approx(Fraction(found.seconds))
    assert found.seconds <= float(least) * (1 + 1e-9)
    assert found.bound <= found.seconds


def test_no_order_of_eight_devices_of_a_torus_is_faster_than_what_is_found() -> None:
    found = layout(torus((2, 4), 3), {"dp": 2, "tp": 4}, TRAFFIC)
    # The tp rings are the two rings of four: 3/4 of 96 bytes, half of them each way, over one cable of 3, and back.
    tp = Fraction(3, 4) * 96 / 3
    # The dp pairs are joined by two cables each: 1/2 of 8 bytes each way, twice.
    dp = Fraction(8, 2) * 2 / 6
    assert found.proven
    assert found.by_axis == pytest.approx({"dp": float(dp), "tp": float(tp)})


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        (of_target("trn2.48xlarge"), (2, 8)),
        (torus((4, 4, 4), 5), (2, 2, 16)),
        (of_target("trainium2-ultraserver"), (64,)),
        (rails(8, 8, 450, 50), (4, 16)),
        (fat_tree(4, 8, 4, 50), (2, 2, 8)),
        (switch(36, 900), (9, 4)),
    ],
    ids=lambda each: "x".join(map(str, each)) if isinstance(each, tuple) else str(each),
)
def test_that_no_order_of_many_devices_is_faster_is_proven_by_a_bound_that_is_reached(
    topology: Topology, sizes: tuple[int, ...]
) -> None:
    begun = time.process_time()
    found = layout(topology, {f"a{place}": size for place, size in enumerate(sizes)})
    assert time.process_time() - begun < 10
    assert found.proven
    assert found.ratio == pytest.approx(1)


def test_where_a_bound_is_not_reached_a_search_proves_it_or_it_is_not_said_to_be_proven() -> None:
    # A square of four neighbours for each tp group, so that two squares that are neighbours have two cables for the
    # four messages of dp from one to the other: 2 each way where 1 is what one axis alone would need.
    squares = layout(torus((8, 8), 1), {"dp": 16, "tp": 4}, {"dp": 16, "tp": 1600})
    assert squares.by_axis == pytest.approx({"dp": 2 * 15, "tp": 3 / 4 * 1600})
    assert squares.proven
    assert squares.ratio > 1
    # Links of many bandwidths between 16 devices, at random.
    rates = random.Random(5)
    links = [
        Link(f"d:{one}", f"d:{other}", bandwidth=rates.randint(1, 99))
        for one, other in itertools.combinations(range(16), 2)
        if other == one + 1 or rates.random() < 0.2
    ]
    found = layout(Topology([Node(f"d:{place}") for place in range(16)], both(*links)), {"a": 2, "b": 2, "c": 4})
    assert not found.proven
    assert 1 < found.ratio == pytest.approx(found.seconds / found.bound)
    assert sorted(found.order) == list(range(16))


def test_a_large_topology_is_counted_as_a_small_one_is() -> None:
    # Of 288 devices a table of all loads would be too large; axes within a machine take what they take in one alone.
    inside = random.Random(1).sample(range(96), 96)
    order = [place * 96 + rank for place in range(3) for rank in inside]
    traffic = {"cp": 5, "tp": 7}
    alone = layout_seconds(rails(1, 96, 9, 1), {"cp": 2, "tp": 48}, inside, traffic)
    together = layout_seconds(rails(3, 96, 9, 1), {"dp": 3, "cp": 2, "tp": 48}, order, traffic)
    assert {axis: together[axis] for axis in alone} == pytest.approx(alone)


def whole_axes(shape: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the orders in which mesh axes have whole axes of a torus: JAX's create_device_mesh chooses one of those."""
    for axes in itertools.permutations(range(len(shape))):
        lengths = [shape[axis] for axis in axes]
        for cuts in itertools.combinations_with_replacement(range(len(shape) + 1), len(sizes) - 1):
            ends = [0, *cuts, len(shape)]
            if [math.prod(lengths[one:other]) for one, other in itertools.pairwise(ends)] == list(sizes):
                strides = [math.prod(shape[axis + 1 :]) for axis in axes]
                steps = itertools.product(*(range(length) for length in lengths))
                yield [sum(at * stride for at, stride in zip(step, strides, strict=True)) for step in steps]


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 4)], ids=str)
def test_giving_each_axis_whole_axes_of_a_torus_is_never_faster(shape: tuple[int, ...]) -> None:
    topology, count = torus(shape, 5), math.prod(shape)
    meshes = [sizes for sizes in itertools.product(range(1, count + 1), repeat=3) if math.prod(sizes) == count]
    could = 0
    for sizes in meshes:
        axes = {f"a{place}": size for place, size in enumerate(sizes)}
        found = layout(topology, axes)
        assert sorted(found.order) == list(range(count))
        for order in whole_axes(shape, sizes):
            could += 1
            assert found.seconds <= sum(layout_seconds(topology, axes, order).values()) * (1 + 1e-9)
    assert could


@pytest.mark.parametrize(
    "topology", [torus((4, 4), 5), rails(2, 8, 9, 1), machines(4, 4, 9, 1), switch(16, 9)], ids=str
)
def test_no_mesh_that_fits_is_refused_and_none_is_slower_than_ranks_in_order(topology: Topology) -> None:
    for sizes in ((16,), (2, 8), (8, 2), (4, 4), (2, 2, 4), (4, 2, 2), (2, 2, 2, 2), (1, 16), (16, 1)):
        axes = {f"a{place}": size for place, size in enumerate(sizes)}
        found = layout(topology, axes)
        assert sorted(found.order) == list(range(16))
        assert found.seconds <= sum(layout_seconds(topology, axes, range(16)).values()) * (1 + 1e-9)


def test_an_axis_of_eight_on_a_torus_of_four_goes_to_and_fro() -> None:
    # JAX's assignment refuses this mesh unless physical axes may be split.
    found = layout(torus((4, 4, 4), 50e9), {"dp": 8, "tp": 8}, {"dp": 1e6, "tp": 1e9})
    # Neighbours are one link apart: a link carries half of 2 x 7/8 of the bytes.
    assert found.by_axis["tp"] == pytest.approx(7 / 8 * 1e9 / 50e9)


def test_devices_of_one_machine_are_together_though_their_ranks_are_not() -> None:
    mixed = machines(2, 4, 450e9, 25e9)
    nodes = [mixed.devices[place] for place in (0, 4, 1, 5, 2, 6, 3, 7)]
    shuffled = Topology([*nodes, *(node for node in mixed.nodes if not node.is_device)], mixed.links)
    found = layout(shuffled, {"dp": 2, "tp": 4})
    groups = [{nodes[rank].name for rank in found.order[begin : begin + 4]} for begin in (0, 4)]
    assert sorted(map(sorted, groups)) == [
        [f"device:{place}" for place in part] for part in ((0, 1, 2, 3), (4, 5, 6, 7))
    ]


def test_the_axis_with_most_traffic_gets_the_fastest_links() -> None:
    topology = machines(4, 2, 450e9, 25e9)

    def together(traffic: Mapping[str, float]) -> bool:
        found = layout(topology, {"a": 2, "b": 4}, traffic)
        return all(found.order[place] // 2 == found.order[place + 4] // 2 for place in range(4))

    assert together({"a": 1e9, "b": 1e3})
    assert not together({"a": 1e3, "b": 1e9})


@pytest.mark.parametrize("topology", [machines(3, 8, 450, 25), fat_tree(3, 8, 2, 50, 50)], ids=["machines", "leaves"])
def test_groups_are_within_domains_of_which_there_are_as_many_as_no_axis_is_long(topology: Topology) -> None:
    found = layout(topology, {"tp": 4, "dp": 6}, {"tp": 1e9, "dp": 1e6})
    groups = [{rank // 8 for rank in found.order[first::6]} for first in range(6)]
    assert all(len(group) == 1 for group in groups)


def test_latency_counts_too() -> None:
    near = [Link(f"d:{one}", f"d:{(one + 1) % 4}", bandwidth=1e9, latency=1e-6) for one in range(4)]
    found = layout(Topology([Node(f"d:{place}") for place in range(4)], both(*near)), {"tp": 4}, {"tp": 4})
    # Six steps of a link's microsecond, and 3/4 of four bytes over it.
    assert found.seconds == pytest.approx(6e-6 + 3e-9)


@pytest.mark.parametrize(
    ("axes", "traffic", "error", "message"),
    [
        ({"dp": 3}, None, MeshError, "dp=3 need 3 devices, and the topology has 4"),
        ({}, None, MeshError, "at least one axis"),
        ({"dp": 0, "tp": 4}, None, MeshError, "'dp' must be a whole number of at least 1, got 0"),
        ({"dp": 4}, {"tp": 1}, MeshError, "traffic is said of an axis 'tp', and there are dp"),
        ({"dp": 4}, {"dp": -1}, ArgumentError, "the traffic of axis 'dp' is a number of bytes, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    axes: dict[str, int], traffic: dict[str, float] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        layout(ring(4, 1), axes, traffic)


def test_a_topology_that_lacks_what_the_question_needs_is_refused() -> None:
    with pytest.raises(TopologyError, match="is not connected"):
        layout(Topology([Node("a"), Node("b")]), {"dp": 2})
    with pytest.raises(TopologyError, match="bandwidth"):
        layout(ring(4), {"dp": 4})
    with pytest.raises(MeshError, match="an order names each of 4 devices once"):
        layout_seconds(ring(4, 1), {"dp": 4}, [0, 1, 2, 2])


def test_the_benchmark_scores_our_layouts_without_jax_and_refuses_no_mesh(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "layout.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_layouts", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Its dataclasses look their module up; JAX may or may not be installed.
        patch.setitem(sys.modules, spec.name, benchmark)
        patch.setitem(sys.modules, "jax", None)
        patch.setattr(sys, "argv", ["layout.py", "--shapes", "4x4"])
        spec.loader.exec_module(benchmark)
        assert benchmark.main() == 0
    assert "JAX is not installed" in capsys.readouterr().out
    # Row by row a ring of 16 goes on to the next row by a cable each way that nobody else uses.
    assert benchmark.greatest_loads((4, 4), (16,), range(16)) == [1.0]
    # The two of a ring of two say both halves to each other, over two cables where an axis has length 2.
    assert benchmark.greatest_loads((2, 4), (2, 4), range(8)) == [1.0, 1.0]
    # Four in a line come back over all three cables; all eight say both halves four cables on, the same way round.
    assert benchmark.greatest_loads((8,), (2, 4), range(8)) == [8.0, 2.0]
