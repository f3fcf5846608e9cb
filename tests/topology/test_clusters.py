from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from devices.errors import ArgumentError, MeshError, TopologyError
from devices.topology import Link, Model, Topology, bound, layout, nest, of_target, traffic, training_step

MILLION = "trainium3-ultracluster"
MESH = {"pp": 16, "dp": 434, "fsdp": 9, "tp": 64}
MODEL = Model(parameters=1e12, layers=128, hidden=16384, heads=128, sequence=8192)
BATCH = 434 * 9 * 16


def test_a_million_chips_are_laid_out_and_their_step_is_predicted_in_little_memory() -> None:
    tracemalloc.start()
    cluster = of_target(MILLION, device="neuron")
    # As many UltraServers of 144 as a million chips have room for.
    assert len(cluster.devices) == 1_000_000 // 144 * 144 == 999_936
    found = layout(cluster, MESH, traffic(MODEL, MESH, BATCH))
    step = training_step(MODEL, MILLION, MESH, BATCH, strides=found.strides)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A list of a million names alone would take more.
    assert peak < 50e6
    assert step.ranks == 4 * 999_936
    # The axis that most is said along is on the links of a chip and its neighbours.
    assert found.strides["tp"] == 1
    assert found.rank({name: length - 1 for name, length in MESH.items()}) == 4 * 999_936 - 1
    assert step.seconds.low < step.seconds.expected < step.seconds.high
    # 6 operations for each parameter and token, on all chips at once, at half of 671 TFLOPS: no step is faster.
    assert step.seconds.expected > 6 * 1e12 * 8192 * BATCH / (0.5 * 671e12 * 999_936)


def test_what_a_cluster_says_of_a_node_is_what_the_whole_graph_of_a_small_one_says() -> None:
    cluster = of_target("trainium1-ultracluster", device="neuron")
    small = replace(cluster, times=3)
    whole = small.part(3)
    assert [node.name for node in small.devices] == [f"neuron:{rank}" for rank in range(48)]
    assert tuple(small.devices) == whole.devices
    assert small.devices[-1].name == "neuron:47"
    assert [node.name for node in small.devices[:2]] == ["neuron:0", "neuron:1"]
    for node in whole.nodes:
        assert small.node(node.name) == node
        assert set(small.links_from(node.name)) == set(whole.links_from(node.name))
        assert set(small.neighbours(node.name)) == set(whole.neighbours(node.name))
    assert (small.nodes, small.links) == (whole.nodes, whole.links)


def test_devices_of_different_members_reach_each_other_over_the_network_alone() -> None:
    two = of_target(MILLION).part(2)
    two.require_connected()
    inside = [link for link in two.links if link.kind != "network" and link.source.startswith("device:")]
    # 200 Gbit/s of EFA for each chip.
    assert {link.bandwidth for link in two.links if link.kind == "network"} == {25e9}
    assert {int(link.source[7:]) // 144 for link in inside if link.target.startswith("device:")} == {0, 1}
    assert all(
        int(link.source[7:]) // 144 == int(link.target[7:]) // 144
        for link in inside
        if link.target.startswith("device:")
    )
    # What one half says to each chip of the other passes 144 links of 25 GB/s.
    assert bound(two, "all_to_all").seconds_per_byte == Fraction(144, 288) * 144 / (144 * 25 * 10**9)


def test_what_needs_every_node_of_a_million_is_refused_and_of_a_part_is_not() -> None:
    cluster = of_target(MILLION)
    for ask in (lambda: bound(cluster, "all_gather"), lambda: cluster.nodes, lambda: cluster.links_from("network")):
        with pytest.raises(TopologyError, match=r"999,936 devices .* are not made.*`part\(2\)`"):
            ask()
    for members in (0, 6945, True, 1.5):
        with pytest.raises(TopologyError, match="has 1 to 6,944 of its members"):
            cluster.part(members)


@pytest.mark.parametrize("name", ["device:999936", "device:01", "rack:0", "rack:0:6944", "device:-1", "neuron:0", ""])
def test_a_name_of_no_node_is_refused(name: str) -> None:
    with pytest.raises(TopologyError, match="has no node"):
        of_target(MILLION).node(name)


def test_a_bandwidth_that_is_not_known_is_named() -> None:
    cluster = of_target("trainium3-ultracluster-gen1")
    assert len(cluster.devices) == 1_000_000
    with pytest.raises(TopologyError, match="is not known"):
        cluster.require_bandwidths()
    known = of_target("trainium1-ultracluster")
    with pytest.raises(TopologyError, match="'device:0' -> 'network' is not known"):
        replace(known, network=Link("device:0", "network", "network")).require_bandwidths()


def test_a_mesh_of_more_ranks_than_a_cluster_has_is_refused() -> None:
    too_many = {"dp": 435 * 16, "fsdp": 9, "tp": 64}
    for ask in (
        lambda: layout(of_target(MILLION), too_many),
        lambda: nest(MILLION, too_many, {}),
        lambda: training_step(MODEL, MILLION, too_many, 435 * 16 * 9),
    ):
        with pytest.raises(MeshError, match="need 4008960 ranks, and trainium3-ultracluster has 3999744"):
            ask()


@pytest.mark.parametrize("strides", [{"dp": 1, "tp": 1}, {"dp": 8, "tp": 2}, {"tp": 1}, {"dp": 8, "tp": 1, "x": 16}])
def test_strides_that_give_two_places_one_rank_are_refused(strides: dict[str, int]) -> None:
    model = Model(parameters=8e9, layers=32, hidden=4096, heads=32, sequence=8192)
    with pytest.raises(MeshError, match="do not lie"):
        training_step(model, "p5.48xlarge", {"dp": 2, "tp": 8}, 2, strides=strides)


def test_the_axis_that_lies_on_the_network_takes_longer_than_on_the_links() -> None:
    model = Model(parameters=8e9, layers=32, hidden=4096, heads=32, sequence=8192)
    near, far = (
        training_step(model, "p5.48xlarge", {"dp": 2, "tp": 8}, 2, strides=strides).collectives
        for strides in ({"dp": 8, "tp": 1}, {"dp": 1, "tp": 2})
    )
    assert far["tp"].seconds.expected > near["tp"].seconds.expected
    assert far["dp"].seconds.expected < near["dp"].seconds.expected
    plain = training_step(model, "p5.48xlarge", {"dp": 2, "tp": 8}, 2)
    assert plain.collectives == near


def test_the_traffic_of_a_step_is_that_of_its_collectives() -> None:
    model = Model(parameters=8e9, layers=32, hidden=4096, heads=32, sequence=8192)
    found = traffic(model, {"pp": 2, "dp": 2, "fsdp": 2, "tp": 4}, batch=8)
    activations, layer = 8192 * 4096 * 2, 8e9 / 4 / 32 * 2
    # Two sequences a rank, 16 layers a stage; all but an all-reduce move half as much as one of the size.
    assert found == pytest.approx(
        {
            "tp": 4 * 16 * 2 * activations,
            "pp": 2 * 2 * activations / 4 / 2,
            "fsdp": 3 * 16 * 2 * layer / 2,
            "dp": 16 * layer / 2,
        }
    )


def test_a_domain_of_two_kinds_is_a_switch_whose_figures_are_speculative() -> None:
    found = of_target("trainium4-nvlink-fusion", chips=(8, 4))
    assert [node.attributes["chip"] for node in found.devices] == ["trainium4"] * 8 + ["rubin"] * 4
    assert {link.bandwidth for link in found.links} == {1.8e12}
    assert bound(found, "all_gather").is_speculative
    with pytest.raises(TopologyError, match="say `chips`, how many are trainium4 and how many rubin, 72 at most"):
        of_target("trainium4-nvlink-fusion")


@pytest.mark.parametrize("chips", [(72, 1), (0, 0), (8,), (-1, 4), (True, 4), 8, (1.0, 2)])
def test_numbers_of_chips_that_no_domain_has_are_refused(chips: Any) -> None:
    with pytest.raises(ArgumentError, match="how many are trainium4"):
        of_target("trainium4-nvlink-fusion", chips=chips)
    with pytest.raises(ArgumentError, match="`chips` is said of a domain"):
        of_target("p5.48xlarge", chips=(4, 4))


def test_a_cluster_whose_devices_have_other_names_is_none() -> None:
    cluster = of_target("trainium1-ultracluster")
    member = Topology(reversed(cluster.member.nodes), cluster.member.links)
    with pytest.raises(TopologyError, match="device 0 of a member is to be device:0, not 'device:15'"):
        replace(cluster, member=member)
