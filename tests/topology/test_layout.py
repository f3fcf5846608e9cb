from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import pytest

from devices.errors import ArgumentError, MeshError, TopologyError
from devices.topology import (
    Link,
    Node,
    Topology,
    both,
    layout,
    layout_seconds,
    machines,
    networked,
    rails,
    ring,
    switch,
    torus,
)

TRAFFIC = {"dp": 8, "tp": 96}


def busiest(topology: Topology, sizes: Sequence[int], order: Sequence[int], traffic: Sequence[int]) -> Fraction:
    """Return the seconds of all axes, by walks over the links one after the other: slow, and easy to see through."""
    names = [node.name for node in topology.devices]
    total = Fraction(0)
    for axis, length in enumerate(sizes):
        load: dict[tuple[str, str], Fraction] = {}
        stride = math.prod(sizes[axis + 1 :])
        for place in range(math.prod(sizes)):
            at = place // stride % length
            for step in (1, -1):
                to = place + ((at + step) % length - at) * stride
                if to == place:
                    continue
                ways = walks(topology, names[order[place]], names[order[to]])
                for way in ways:
                    part = Fraction(1, math.prod(split for _, split in way))
                    for link, _ in way:
                        load[link] = load.get(link, Fraction(0)) + part
        rates = {(link.source, link.target): Fraction(link.bandwidth or 0) for link in topology.links}
        share = Fraction((length - 1) * traffic[axis], length)
        total += max((load[link] * share / rates[link] for link in load), default=Fraction(0))
    return total


def walks(topology: Topology, source: str, target: str) -> list[list[tuple[tuple[str, str], int]]]:
    """Return all shortest walks: each its links, and among how many the bytes are split where each begins."""
    far = {target: 0}
    edge = [target]
    while edge:
        edge = [link.source for link in topology.links if link.target in edge and link.source not in far]
        far |= dict.fromkeys(edge, max(far.values()) + 1)

    def on(node: str) -> list[list[tuple[tuple[str, str], int]]]:
        if node == target:
            return [[]]
        nearer = [link.target for link in topology.links if link.source == node and far[link.target] == far[node] - 1]
        return [[((node, end), len(nearer)), *rest] for end in nearer for rest in on(end)]

    return on(source)


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


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        (ring(6, 3), (2, 3)),
        (ring(6, 3), (3, 2)),
        (torus((2, 3), 3), (3, 2)),
        (torus((2, 3), 3, wrap=False), (2, 3)),
        (BRIDGED, (2, 3)),
        (BRIDGED, (3, 2)),
        (machines(2, 3, 9, 1), (2, 3)),
        (networked([switch(2, 8, device="a"), ring(4, 2, device="b")], [1, 1]), (3, 2)),
    ],
    ids=str,
)
def test_no_order_of_six_devices_is_faster(topology: Topology, sizes: tuple[int, int]) -> None:
    traffic = tuple(TRAFFIC.values())
    # Half of all orders are the others turned round.
    every = (each for each in itertools.permutations(range(6)) if each[0] < each[-1])
    least = min(busiest(topology, sizes, order, traffic) for order in every)
    found = layout(topology, dict(zip(TRAFFIC, sizes, strict=True)), TRAFFIC)
    assert found.proven
    assert busiest(topology, sizes, found.order, traffic) <= least
    assert found.seconds == pytest.approx(float(least))
    assert found.bound <= float(least) * (1 + 1e-9)


def test_no_order_of_eight_devices_of_a_torus_is_faster_than_what_is_found_without_trying_all() -> None:
    topology, sizes = torus((2, 4), 3), (2, 4)
    found = layout(topology, {"dp": 2, "tp": 4}, TRAFFIC)
    # The tp rings are the two rings of four: 3/4 of 96 bytes, half of them each way, over one cable of 3, and back.
    tp = Fraction(3, 4) * 96 / 3
    # The dp pairs are joined by two cables each: 1/2 of 8 bytes each way, twice.
    dp = Fraction(8, 2) * 2 / 6
    assert found.by_axis == pytest.approx({"dp": float(dp), "tp": float(tp)})
    assert busiest(topology, sizes, found.order, tuple(TRAFFIC.values())) == tp + dp


@pytest.mark.parametrize(
    ("topology", "axes"),
    [(torus((4, 4), 5), {"dp": 4, "tp": 4}), (switch(64, 9), {"dp": 8, "tp": 8}), (ring(16, 9), {"tp": 16})],
    ids=str,
)
def test_that_no_order_is_faster_is_proven_by_a_bound_where_one_is_reached(
    topology: Topology, axes: dict[str, int]
) -> None:
    found = layout(topology, axes)
    assert found.proven
    assert found.seconds == pytest.approx(found.bound)


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


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), (2, 2, 4)], ids=str)
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
