from __future__ import annotations

import copy
import pickle

import pytest

from devices.errors import TopologyError
from devices.topology import Link, Node, Topology, machines, networked, rails, ring, switch, torus
from devices.topology.builders import fat_tree
from devices.topology.graph import both

PAIR = [Node("cpu:0"), Node("cpu:1")]


def test_a_node_copies_pickles_and_compares_by_its_attributes() -> None:
    node = Node("s", "switch", {"reduces": True, "ports": [1, 2]})
    assert node.attributes["ports"] == (1, 2)
    assert copy.deepcopy(node) == node == pickle.loads(pickle.dumps(node))  # noqa: S301
    assert hash(node) == hash(copy.deepcopy(node))
    assert node != Node("s", "switch", {"reduces": False, "ports": (1, 2)})
    with pytest.raises(TypeError):
        node.attributes["ports"] = 3  # type: ignore[index]


def test_only_a_switch_reduces() -> None:
    assert Node("s", "switch", {"reduces": True}).reduces
    assert not Node("s", "switch").reduces
    assert not Node("d", "device", {"reduces": True}).reduces


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Node(""), "not empty"),
        (lambda: Node("a", "swich"), "did you mean 'switch'"),
        (lambda: Node("a", attributes={"x": object()}), "'x'"),
        (lambda: Node("a", attributes={"x": float("nan")}), "nan"),
        (lambda: Link("a", "a"), "leads to another node"),
        (lambda: Link("a", "b", bandwidth=0), "more than 0"),
        (lambda: Link("a", "b", bandwidth=-1.0), "more than 0"),
        (lambda: Link("a", "b", bandwidth=True), "more than 0"),
        (lambda: Link("a", "b", bandwidth=float("inf")), "inf"),
        (lambda: Link("a", "b", latency=-1e-6), "at least 0"),
        (lambda: Topology([*PAIR, Node("cpu:0")]), "two nodes are named 'cpu:0'"),
        (lambda: Topology(PAIR, [Link("cpu:0", "cpu:2")]), "no node 'cpu:2'; did you mean"),
        (lambda: Topology(PAIR, [Link("gpu", "cpu:0")]), "no node 'gpu'"),
        (lambda: Topology(PAIR, ["cpu:0"]), "no devices.topology.Link"),  # type: ignore[list-item]
        (lambda: Topology(PAIR).node("cpu:3"), "no node 'cpu:3'"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(make: object, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        make()  # type: ignore[operator]


def test_links_that_contradict_each_other_are_an_error_that_names_both_figures() -> None:
    links = [Link("cpu:0", "cpu:1", "pcie", 32e9), Link("cpu:0", "cpu:1", "pcie", 64e9)]
    with pytest.raises(TopologyError, match=r"'cpu:0' -> 'cpu:1' of kind 'pcie' has bandwidth 32.* and 64"):
        Topology(PAIR, links)
    with pytest.raises(TopologyError, match="latency"):
        Topology(PAIR, [Link("cpu:0", "cpu:1", latency=1e-6), Link("cpu:0", "cpu:1", latency=2e-6)])


def test_a_link_that_is_said_twice_is_kept_once_with_the_figures_of_both() -> None:
    said = [Link("cpu:0", "cpu:1", "pcie", 32e9), Link("cpu:0", "cpu:1", "pcie", latency=1e-6, origin="ls")]
    assert Topology(PAIR, said).links == (Link("cpu:0", "cpu:1", "pcie", 32e9, 1e-6, "ls"),)


def test_links_of_two_kinds_lie_side_by_side() -> None:
    assert len(Topology(PAIR, [Link("cpu:0", "cpu:1", "a", 1), Link("cpu:0", "cpu:1", "b", 2)]).links) == 2


def test_the_order_in_which_links_are_said_makes_no_difference() -> None:
    whole = torus((3, 3), 5)
    assert Topology(whole.nodes, reversed(whole.links)) == whole
    assert hash(Topology(whole.nodes, reversed(whole.links))) == hash(whole)
    assert Topology(reversed(whole.nodes), whole.links) != whole


def test_neighbours_follow_the_direction_of_links() -> None:
    found = Topology(PAIR, [Link("cpu:0", "cpu:1")])
    assert (found.neighbours("cpu:0"), found.neighbours("cpu:1")) == (("cpu:1",), ())


def test_a_graph_in_which_a_device_is_not_reached_is_no_connected_one() -> None:
    nodes = [*PAIR, Node("cpu:2"), Node("lone", "switch")]
    with pytest.raises(TopologyError, match=r"no path leads from 'cpu:0' to 'cpu:2'"):
        Topology(nodes, both(Link("cpu:0", "cpu:1"))).require_connected()
    one_way = Topology(nodes, [*both(Link("cpu:0", "cpu:1")), Link("cpu:1", "cpu:2")])
    with pytest.raises(TopologyError, match=r"no path leads to 'cpu:0' from 'cpu:2'"):
        one_way.require_connected()
    Topology(nodes, [*one_way.links, Link("cpu:2", "cpu:0")]).require_connected()
    with pytest.raises(TopologyError, match="no devices"):
        Topology([]).require_connected()


def test_a_bandwidth_that_is_asked_for_and_not_known_is_named() -> None:
    ring(4, 5).require_bandwidths()
    with pytest.raises(TopologyError, match=r"'cpu:0' -> 'cpu:1' is not known.*`bandwidth`"):
        Topology(PAIR, [Link("cpu:0", "cpu:1", latency=1e-6)]).require_bandwidths()
    with pytest.raises(TopologyError, match="and 5 more"):
        ring(4).require_bandwidths()


def test_a_union_keeps_what_both_have_once_and_refuses_what_they_contradict() -> None:
    one = Topology([*PAIR, Node("s", "switch", {"ports": 4})], [Link("cpu:0", "s", bandwidth=1)])
    other = Topology([Node("s", "switch", {"reduces": True})], name="other")
    found = one.union(other)
    assert found.name == "other"
    assert found.node("s") == Node("s", "switch", {"ports": 4, "reduces": True})
    assert found.links == one.links
    with pytest.raises(TopologyError, match="kind 'switch' and of kind 'nic'"):
        one.union(Topology([Node("s", "nic")]))
    with pytest.raises(TopologyError, match="ports = 4 and 8"):
        one.union(Topology([Node("s", "switch", {"ports": 8})]))


def degree(topology: Topology, name: str) -> float:
    return sum(link.bandwidth or 0 for link in topology.links_from(name))


def test_a_torus_has_two_links_an_axis_and_twice_the_rate_in_an_axis_of_two() -> None:
    cube = torus((4, 4, 4), 50)
    assert len(cube.links) == 64 * 6
    assert {degree(cube, node.name) for node in cube.nodes} == {300}
    assert set(cube.neighbours("device:0")) == {f"device:{place}" for place in (1, 3, 4, 12, 16, 48)}
    flat = torus((2, 4), 64)
    assert {degree(flat, node.name) for node in flat.nodes} == {4 * 64}
    assert torus((1, 5), 7) == ring(5, 7, kind="torus")


def test_a_grid_has_ends() -> None:
    line = torus((4,), 1, wrap=False)
    assert [degree(line, node.name) for node in line.nodes] == [1, 2, 2, 1]
    half = torus((2, 3), 1, wrap=(False, True))
    assert {degree(half, node.name) for node in half.nodes} == {3}


def test_the_4x4_torus_is_the_one_that_neuron_ls_prints() -> None:
    # From the documented output of a trn1.32xlarge and a trn2.48xlarge.
    grid = torus((4, 4), device="neuron")
    assert set(grid.neighbours("neuron:0")) == {f"neuron:{place}" for place in (12, 3, 4, 1)}
    assert set(grid.neighbours("neuron:10")) == {f"neuron:{place}" for place in (6, 9, 14, 11)}


def test_switches_carry_what_they_were_given() -> None:
    fusion = switch(3, [1800, 1800, 900], reduces=True)
    assert [degree(fusion, f"device:{place}") for place in range(3)] == [1800, 1800, 900]
    assert fusion.node("switch").reduces
    tree = fat_tree(leaves=2, per_leaf=4, spines=2, bandwidth=10)
    assert degree(tree, "leaf:0") == 4 * 10 + 2 * 20
    dgx = machines(2, 8, 300, 25)
    assert degree(dgx, "device:3") == 325
    assert degree(dgx, "network") == 16 * 25
    railed = rails(4, 8, 450, 50)
    assert degree(railed, "rail:3") == 4 * 50
    mixed = networked([switch(8, 450, device="cuda"), torus((2, 4), 64, device="neuron")], [50, 25])
    assert [node.name for node in mixed.devices][7:9] == ["cuda:7", "neuron:0"]
    assert degree(mixed, "neuron:0") == 4 * 64 + 25
    for each in (fusion, tree, dgx, railed, mixed):
        each.require_connected()
        each.require_bandwidths()
        assert each.reversed() == each


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torus((4, 0)), "at least 1, got 0"),
        (lambda: torus((4, 4), wrap=[True]), "2 axes needs as many"),
        (lambda: switch(3, [1, 2]), "3 devices needs one bandwidth or 3, got 2"),
        (lambda: networked([ring(3)], []), "1 parts .* got 0"),
        (lambda: machines(0, 8), "number of machines"),
    ],
)
def test_a_shape_that_cannot_be_is_an_error(make: object, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        make()  # type: ignore[operator]
