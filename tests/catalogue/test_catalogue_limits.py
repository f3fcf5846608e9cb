from __future__ import annotations

import pytest

from devices.catalogue import load

NEURON = ("trainium2", "trn2.48xlarge", "trainium2-ultraserver", "trainium3-ultraserver-gen2")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("trn2.48xlarge", size) for size in (1, 2, 4, 8, 16, 32, 64)],
        *[("trainium2-ultraserver", size) for size in (32, 64, 128, 192, 256)],
        *[("trainium3-ultraserver-gen2", size) for size in (16, 32, 64, 96, 576)],
        *[("p5.48xlarge", size) for size in range(1, 9)],
    ],
)
def test_a_legal_world(name: str, size: int) -> None:
    assert load(name).limits.world_refusal(size) is None


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        *[
            (
                "trn2.48xlarge",
                size,
                f"{size} is no legal number of ranks: it must be 1, 2, 4, 8, 16 or a multiple of 32",
            )
            for size in (0, 3, 12, 24, 48)
        ],
        ("trn2.48xlarge", 96, "96 ranks are more than the 64 that it has"),
        ("trainium2", 8, "8 ranks are more than the 4 that it has"),
        ("trainium2-ultraserver", 96, "96 ranks are more than one node's 64 and not all the ranks of several nodes"),
        ("trainium3-ultraserver-gen2", 144, "144 is no legal number of ranks"),
        ("p5.48xlarge", 9, "9 ranks are more than the 8 that it has"),
    ],
)
def test_a_world_that_is_refused_says_why(name: str, size: int, why: str) -> None:
    refusal = load(name).limits.world_refusal(size)
    assert refusal is not None
    assert refusal.startswith(why)


@pytest.mark.parametrize(
    "ranks",
    [
        [],
        [5],
        [0, 1, 2],
        [3, 17, 40],
        range(64, 128),
        [0, 64, 128, 192],
        [7, 1, 65, 71],
        range(256),
        range(0, 256, 4),
    ],
)
def test_a_group_with_the_same_places_on_each_node_is_symmetric(ranks: list[int]) -> None:
    """A node of an UltraServer of Trainium2 has 16 chips of 4 ranks."""
    assert load("trainium2-ultraserver").limits.group_refusal(ranks) is None


@pytest.mark.parametrize(
    ("ranks", "why"),
    [
        ([0, 65], "it is not symmetric: it has the places 0 of node 0 and 1 of node 1"),
        ([0, 1, 64], "it is not symmetric: it has the places 0, 1 of node 0 and 0 of node 1"),
        ([63, 64], "it is not symmetric: it has the places 63 of node 0 and 0 of node 1"),
        (
            range(32, 96),
            "it is not symmetric: it has the places 32, 33, 34, 35, 36, 37, 38, 39, ... (32 in all) of nod",
        ),
        ([0, 64, 129], "it is not symmetric: it has the places 0 of node 0 and 1 of node 2"),
    ],
)
def test_a_group_that_is_not_symmetric_says_where(ranks: list[int], why: str) -> None:
    refusal = load("trainium2-ultraserver").limits.group_refusal(ranks)
    assert refusal is not None
    assert refusal.startswith(why)


def test_lnc_moves_the_border_between_nodes() -> None:
    assert load("trainium2-ultraserver").limits.group_refusal([0, 64]) is None
    assert load("trainium2-ultraserver", lnc=1).limits.group_refusal([0, 128]) is None
    assert load("trainium2-ultraserver", lnc=1).limits.group_refusal([0, 64]) is None  # on one node
    assert load("trainium2-ultraserver", lnc=1).limits.group_refusal([0, 129]) is not None


@pytest.mark.parametrize("name", NEURON)
def test_what_every_neuron_target_refuses(name: str) -> None:
    limits = load(name).limits
    assert (limits.device_type, limits.process_group) == ("neuron", "neuron")
    assert not limits.dtypes & {"float64", "complex64", "complex128", "float8_e4m3fnuz"}
    assert limits.dtypes >= {"bool", "int64", "int32", "bfloat16", "float16", "float32", "float8_e5m2"}
    assert limits.reductions.keys() == {"sum", "min", "max"}
    assert not limits.reductions["sum"] & {"int32", "int64", "bool"}
    assert limits.reductions["sum"] >= {"float32", "bfloat16", "float16", "uint8"}
    assert not limits.verbs & {"send", "recv"}
    assert limits.verbs >= {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"}
    assert (limits.uneven_splits, limits.empty_tensors, limits.subgroup_barrier) == (False, False, False)
    assert (limits.world_sizes, limits.world_size_multiple) == (frozenset({1, 2, 4, 8, 16}), 32)
    assert (limits.whole_nodes, limits.symmetric_groups) == (True, True)
    assert (limits.max_groups, limits.max_streams) == (16, 4)


def test_float8_differs_between_trainium_2_and_3() -> None:
    two, three = load("trainium2").limits, load("trainium3").limits
    assert "float8_e4m3fn" not in two.dtypes
    assert two.float8_max == 240
    assert "float8_e4m3fn" in three.dtypes
    assert three.float8_max is None


def test_what_nccl_refuses() -> None:
    limits = load("p5.48xlarge").limits
    assert (limits.device_type, limits.process_group) == ("cuda", "nccl")
    assert limits.dtypes >= {"float64", "float8_e4m3fn", "int16", "complex64"}
    assert limits.moved_dtypes is not None
    assert "int16" not in limits.moved_dtypes
    assert limits.reductions.keys() == {"sum", "avg", "min", "max", "prod"}
    assert "bool" not in limits.reductions["avg"]
    assert "float8_e4m3fn" in limits.reductions["sum"]
    assert limits.verbs >= {"send", "recv", "gather", "scatter"}
    assert limits.uneven_splits is True
    for field in ("world_sizes", "world_size_multiple", "whole_nodes", "symmetric_groups", "max_groups", "max_streams"):
        assert getattr(limits, field) is None
        assert load("p5.48xlarge").provenance(field).reason
