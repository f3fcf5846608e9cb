"""The searches for layouts, each alone, against all orders of a few devices, counted one by one."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from by_hand import said

from devices.topology import (
    Link,
    Node,
    Topology,
    both,
    fat_tree,
    layout,
    machines,
    rails,
    torus,
)
from devices.topology.laying_blocks import blocked, with_cuts
from devices.topology.laying_bound import Bounds
from devices.topology.laying_dense import can_be
from devices.topology.laying_levels import Levels, raised
from devices.topology.laying_moves import moves
from devices.topology.laying_parts import Parts
from devices.topology.paths import Paths
from devices.topology.rings import Cost, axes_of
from devices.topology.shapes import torus_shape

Floats = np.ndarray[Any, np.dtype[np.float64]]

RATES = random.Random(3)
DRAWN = Topology(
    [Node(f"d:{place}") for place in range(8)],
    both(
        *(
            Link(f"d:{one}", f"d:{other}", bandwidth=RATES.randint(1, 9) * 1e9)
            for one, other in itertools.combinations(range(8), 2)
            if other == one + 1 or RATES.random() < 0.3
        )
    ),
)
FEW = {
    "torus 2x4": torus((2, 4), 3),
    "grid 2x4": torus((2, 4), 3, wrap=False),
    "ring": torus((8,), 3),
    "line": torus((8,), 3, wrap=False),
    "cube": torus((2, 2, 2), 3, wrap=False),
    "machines of 2": machines(4, 2, 9, 2),
    "machines of 4": machines(2, 4, 9, 2),
    "rails": rails(2, 4, 9, 2),
    "leaves of 2, half the uplinks": fat_tree(4, 2, 1, 4, 4),
    "leaves of 4, half the uplinks": fat_tree(2, 4, 2, 4, 4),
    "drawn": DRAWN,
    "torus 3x3": torus((3, 3), 3),
    "grid 3x3": torus((3, 3), 3, wrap=False),
    "ring of 9": torus((9,), 3),
    "machines of 3": machines(3, 3, 9, 2),
}
MESHES = {8: ((8,), (2, 4), (4, 2), (2, 2, 2)), 9: ((9,), (3, 3))}
TRAFFIC = (3, 10, 97)


@functools.cache
def tables(name: str) -> tuple[Floats, Floats]:
    """Return for each two devices the seconds of each link that a byte goes over, and those that it takes alone."""
    topology = FEW[name]
    pairs, unit = said(topology, torus_shape(topology))
    links = sorted({link for parts, _ in pairs.values() for link in parts})
    count = len(topology.devices)
    loads, alone = np.zeros((count, count, len(links))), np.zeros((count, count))
    for (one, other), (parts, seconds) in pairs.items():
        alone[one, other] = float(seconds * unit)
        for link, part in parts.items():
            loads[one, other, links.index(link)] = float(part * unit)
    return loads, alone


def every(name: str, sizes: Sequence[int], orders: Floats | None = None) -> Floats:
    """Return what each axis takes, for each order of the devices of which the first has the first place."""
    loads, alone = tables(name)
    if orders is None:
        orders = np.array([(0, *rest) for rest in itertools.permutations(range(1, len(loads)))])
    found = []
    for axis, length in enumerate(sizes):
        stride = math.prod(sizes[axis + 1 :])
        load = np.zeros((len(orders), loads.shape[2]))
        slowest = np.zeros(len(orders))
        for place, step in itertools.product(range(len(loads)), (1, -1)):
            at = place // stride % length
            one, other = orders[:, place], orders[:, place + ((at + step) % length - at) * stride]
            load += loads[one, other]
            slowest = np.maximum(slowest, alone[one, other] * (2 if length == 2 else 1))
        found.append(np.maximum(load.max(1), slowest) * (length - 1) / length * TRAFFIC[axis])
    return np.array(found)


def asked(name: str, sizes: Sequence[int]) -> tuple[Cost, Bounds]:
    topology = FEW[name]
    cost = Cost(Paths(topology), len(topology.devices), axes_of(sizes, TRAFFIC[: len(sizes)]))
    return cost, Bounds(topology, cost)


@pytest.mark.parametrize(
    ("name", "sizes"), [(name, sizes) for name, each in FEW.items() for sizes in MESHES[len(each.devices)]], ids=str
)
def test_each_search_agrees_with_all_orders_of_a_few_devices(name: str, sizes: tuple[int, ...]) -> None:
    taken = every(name, sizes)
    least = float(taken.sum(0).min())
    cost, bounds = asked(name, sizes)
    assert cost.loads is not None
    assert bounds.seconds <= least * (1 + 1e-9)
    changing = moves(FEW[name], cost.loads, [[each.members for each in level] for level in bounds.levels])
    slow = (0, 7, 2, 5, 4, 3, 6, 1, 8)[: cost.count]
    floors = raised(cost, bounds.by_axis, slow, changing)
    # Each axis alone could be as fast as in its own fastest order, if not in one order with the others.
    assert all(floor <= alone * (1 + 1e-9) for floor, alone in zip(floors, taken.min(1), strict=True))
    order, bound = Levels(cost, floors, changing).improve(slow, 100_000)
    assert every(name, sizes, np.array([order])).sum() == pytest.approx(least, rel=1e-9, abs=0)
    assert bound == pytest.approx(least, rel=1e-9, abs=0)
    # What axes take at least in faster orders, in those that take at most so much.
    for limit in (least, 1.001 * least, 1.2 * least, 2 * least):
        least_of = blocked(with_cuts(FEW[name], cost), bounds.by_axis, limit)
        faster = taken[:, taken.sum(0) < limit * (1 - 1e-9)]
        assert (faster >= np.array(least_of)[:, None] * (1 - 1e-9)).all()
    for domains in bounds.levels:
        parts = Parts(cost, bounds.kinds(domains), domains)
        assert parts.least(math.inf, 100_000)[0] <= least * (1 + 1e-9)
        assert parts.left
    found = layout(FEW[name], _named(sizes), dict(zip("abc"[: len(sizes)], TRAFFIC, strict=False)))
    assert found.seconds == pytest.approx(least, rel=1e-9, abs=0)
    assert found.proven


def test_what_may_be_exchanged_changes_nothing_and_is_found_where_it_is() -> None:
    found = {}
    for name in FEW:
        count = len(FEW[name].devices)
        sizes = MESHES[count][-1]
        cost, bounds = asked(name, sizes)
        assert cost.loads is not None
        changing = moves(FEW[name], cost.loads, [[each.members for each in level] for level in bounds.levels])
        orders = np.array([random.Random(seed).sample(range(count), count) for seed in range(20)])
        for move in changing:
            assert every(name, sizes, move[orders]) == pytest.approx(every(name, sizes, orders), rel=1e-9, abs=0)
        found[name] = len(changing)
    # Two neighbours on one switch, and two switches: three exchanges of each kind at least.
    assert found["machines of 2"] >= 3 + 4
    assert found["drawn"] == 0
    # One axis turned round, the other, or both.
    assert found["torus 3x3"] >= 3


@pytest.mark.parametrize(
    ("topology", "sizes", "loads"),
    [
        # All cables of the torus say one share of the rings of 32, which go to and fro in two bands of two rows that
        # turn by four rows; the pairs are two cables apart, and of the two that say both halves over one, each way.
        (torus((8, 8), 1), (2, 32), (4, 1)),
        # A square of four chips has four neighbours of its kind at two cables' distance.
        (torus((8, 8), 1, wrap=False), (2, 4, 8), (4, 4, 1)),
        # All leaves say a half of what their chips say: eight shares over four uplinks.
        (fat_tree(8, 8, 4, 1, 1), (2, 2, 2, 8), (2, 2, 2, 2)),
        # A chip says both shares of a ring over its one cable. Of the pairs all four chips of a leaf say two shares
        # each over its two uplinks.
        (fat_tree(6, 4, 2, 1, 1), (2, 2, 2, 3), (4, 4, 4, 2)),
        (torus((24,), 1), (2, 3, 4), (8, 8, 2)),
        (torus((4, 16), 1), (2, 4, 4, 2), (4, 4, 1, 2)),
        (torus((2, 32), 1), (4, 4, 4), (8, 4, 1)),
        # The rings of 8 are eight blocks of four columns. Between two blocks of a ring of 4 eight chips' rings go to
        # and fro, over two cables, and so does what a pair of two blocks that are side by side says.
        (torus((2, 32), 1), (2, 4, 8), (8, 8, 1)),
        (torus((2, 32), 1), (2, 2, 4, 4), (16, 16, 4, 1)),
        (torus((2, 32), 1), (2, 4, 4, 2), (8, 8, 2, 1)),
        # A block of eight chips has eight neighbours four cables away.
        (torus((4, 16), 1), (2, 4, 8), (2, 4, 1)),
        (torus((8, 8), 1, wrap=False), (2, 4, 4, 2), (2, 4, 2, 2)),
        # All neighbours are one cable apart, and no cable says more than one share of rings, or both of a pair: so few
        # is what each axis alone would take. It is 128 chips, which are not searched.
        (torus((4, 4, 8), 1), (2, 4, 16), (2, 1, 1)),
    ],
    ids=[
        "torus",
        "grid",
        "leaves",
        "leaves of 4",
        "ring",
        "4x16",
        "2x32",
        "2x32 of 2x4x8",
        "2x32 of 2x2x4x4",
        "2x32 of 2x4x4x2",
        "4x16 of 2x4x8",
        "grid of 2x4x4x2",
        "4x4x8",
    ],
)
def test_layouts_that_no_factors_give_are_found_and_proven(
    topology: Topology, sizes: tuple[int, ...], loads: Sequence[int]
) -> None:
    found = layout(topology, _named(sizes))
    shares = [10.0 ** (place + 1 - len(sizes)) * 1e9 * (length - 1) / length for place, length in enumerate(sizes)]
    assert list(found.by_axis.values()) == pytest.approx([a * b for a, b in zip(loads, shares, strict=True)])
    assert found.proven


@pytest.mark.parametrize("sizes", [(2, 2, 4), (3, 4)], ids=str)
def test_whether_places_can_have_so_many_pairs_of_neighbours_agrees_with_all_sets_of_places(
    sizes: tuple[int, ...],
) -> None:
    places = list(itertools.product(*map(range, sizes)))
    around = []
    for axis, length in enumerate(sizes):
        turned = [{(*at[:axis], (at[axis] + step) % length, *at[axis + 1 :]) for step in (1, -1)} for at in places]
        around.append([sum(1 << places.index(at) for at in each) for each in turned])
    for many in (3, 4, 5):
        pairs = set()
        for chosen in itertools.combinations(range(len(places)), many):
            inside = sum(1 << at for at in chosen)
            pairs.add(tuple(sum((axis[at] & inside).bit_count() for at in chosen) // 2 for axis in around))
        for needed in itertools.product(range(many), repeat=len(sizes)):
            expected = any(all(a >= b for a, b in zip(each, needed, strict=True)) for each in pairs)
            assert can_be(many, around, needed, 100_000)[0] == expected, (many, needed)


@pytest.mark.parametrize(
    ("name", "sizes"), [("ring", (2, 4)), ("ring", (2, 2, 2)), ("torus 2x4", (2, 4)), ("line", (4, 2))], ids=str
)
def test_what_sets_of_devices_say_to_each_other_is_all_that_the_fastest_order_takes(
    name: str, sizes: tuple[int, ...]
) -> None:
    least = float(every(name, sizes).sum(0).min())
    cost, bounds = asked(name, sizes)
    assert sum(blocked(with_cuts(FEW[name], cost), bounds.by_axis, least)) == pytest.approx(least, rel=1e-9, abs=0)
    # As long as not all faster orders are excluded.
    assert sum(blocked(with_cuts(FEW[name], cost), bounds.by_axis, 1.01 * least)) < 1.01 * least


def test_no_domain_of_eighteen_is_cut_into_pairs_of_nine() -> None:
    # Of a line of four each of its chips has a neighbour in its domain as two or all four are in it, and nine are odd.
    found = layout(machines(4, 18, 900e9, 50e9), {"a": 9, "b": 2, "c": 4})
    assert found.by_axis["c"] == pytest.approx(3 / 4 * 1e9 / 50e9)
    assert found.by_axis["b"] == pytest.approx(1 / 2 * 1e8 * 2 / 50e9)
    assert found.proven


def _named(sizes: Sequence[int]) -> Mapping[str, int]:
    return dict(zip("abcd", sizes, strict=False))
