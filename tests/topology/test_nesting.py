from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from devices.errors import ArgumentError, MeshError
from devices.topology import nest, predict


def test_the_axis_with_most_traffic_is_on_the_links() -> None:
    axes = {"a": 2, "b": 8}
    assert nest("p5.48xlarge", axes, {"a": 1e3, "b": 1e9}).strides == {"a": 8, "b": 1}
    assert nest("p5.48xlarge", axes, {"a": 1e9, "b": 1e3}).strides == {"a": 1, "b": 2}


def test_an_axis_that_fills_a_machine_takes_what_its_all_reduce_takes() -> None:
    found = nest("p5.48xlarge", {"dp": 2, "tp": 8}, {"dp": 1e6, "tp": 1e9})
    assert found.by_axis["tp"].seconds == predict("all_reduce", 1e9, "p5.48xlarge", 8).seconds
    assert found.seconds == pytest.approx(sum(each.seconds.expected for each in found.by_axis.values()))


def test_each_place_has_a_rank_of_its_own() -> None:
    found = nest("trn2.48xlarge", {"a": 2, "b": 4, "c": 8}, {"a": 1e6, "b": 1e7, "c": 1e8})
    places = itertools.product(range(2), range(4), range(8))
    ranks = [found.rank(dict(zip("abc", place, strict=True))) for place in places]
    assert sorted(ranks) == list(range(64))


def test_a_mesh_of_four_axes_on_a_million_chips_is_nested_at_once() -> None:
    begin = time.perf_counter()
    # 6,944 UltraServers of 144 chips, and four ranks a chip.
    axes = {"pp": 16, "dp": 434, "fsdp": 9, "tp": 64}
    found = nest("trainium3-ultraserver-gen2", axes, {"pp": 1e6, "dp": 1e7, "fsdp": 1e8, "tp": 1e10})
    assert time.perf_counter() - begin < 10
    assert found.strides["tp"] == 1
    assert found.strides["fsdp"] == 64


@pytest.mark.parametrize(
    ("axes", "traffic", "error", "message"),
    [
        ({}, {}, MeshError, "at least one axis"),
        ({"dp": 0}, {}, MeshError, "'dp' must be a whole number of at least 1, got 0"),
        ({"dp": 2}, {"tp": 1}, MeshError, "traffic is said of an axis 'tp', and there are dp"),
        ({"dp": 2}, {"dp": -1}, ArgumentError, "the traffic of axis 'dp' is a number of bytes, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    axes: dict[str, Any], traffic: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nest("p5.48xlarge", axes, traffic)
