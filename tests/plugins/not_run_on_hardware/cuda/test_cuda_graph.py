"""Machines as topologies: expected are the figures that the facts give for each, by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_machines import MATRICES, RECORDS, machine

from devices.errors import TopologyError
from devices.topology import Topology
from devices_cuda.graph import doubts, topology
from devices_cuda.machine import Fabric, Gpu, Machine, Nearness, Nic, NvLink, Pair
from devices_cuda.nearness import ancestor, nearest_nics
from devices_cuda.visibility import visible


def nvlinks(graph: Topology) -> dict[tuple[str, str], float | None]:
    return {(link.source, link.target): link.bandwidth for link in graph.links if link.kind == "nvlink"}


@pytest.mark.parametrize("name", [*RECORDS, *MATRICES])
def test_every_machine_becomes_a_graph_with_links_in_both_directions(name: str) -> None:
    graph = topology(machine(name))
    assert [node.name for node in graph.devices] == [
        f"cuda:{gpu.index}" for gpu in machine(name).gpus if gpu.fault is None
    ]
    ways = {(link.source, link.target, link.kind, link.bandwidth) for link in graph.links}
    assert ways == {(target, source, kind, rate) for source, target, kind, rate in ways}
    if graph.devices:
        graph.require_connected()


@pytest.mark.parametrize(
    ("name", "gpus", "rate", "switch", "reduces"),
    [
        ("dgx-a100.json", 8, 300e9, "nvswitch", False),
        ("hgx-h100.json", 8, 450e9, "nvswitch", True),
        ("gb200-tray.json", 4, 900e9, f"nvlink-domain:{'0123456789abcdef' * 2}.7", True),
        ("dgx-a100.txt", 8, None, "nvswitch", False),
        ("hgx-h100.txt", 8, None, "nvswitch", False),
        ("h100-four-nics.txt", 8, None, "nvswitch", False),
        ("gb200-tray.txt", 4, None, "nvswitch", False),
        ("dgx-2.txt", 16, None, "nvswitch", False),
    ],
)
def test_gpus_on_switches_have_the_bandwidth_of_their_links_to_them(
    name: str, gpus: int, rate: float | None, switch: str, reduces: bool
) -> None:
    graph = topology(machine(name))
    expected = {(f"cuda:{index}", switch): rate for index in range(gpus)}
    assert nvlinks(graph) == expected | {(target, source): rate for source, target in expected}
    assert graph.node(switch).reduces is reduces


@pytest.mark.parametrize(("name", "rate"), [("a100-pcie-bridges.json", 300e9), ("a100-pcie-bridges.txt", None)])
def test_gpus_with_bridges_have_links_in_pairs(name: str, rate: float | None) -> None:
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    expected = {(f"cuda:{one}", f"cuda:{other}"): rate for pair in pairs for one, other in (pair, pair[::-1])}
    assert nvlinks(topology(machine(name))) == expected


def hosts(graph: Topology) -> dict[str, set[str]]:
    """Return what hangs on each NUMA node, by the way up from each leaf."""
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        if node.kind not in ("device", "nic"):
            continue
        at, seen = [node.name], {node.name}
        while at:
            name = at.pop()
            for link in graph.links_from(name):
                is_up = link.kind == "pcie" and graph.node(link.target).kind in ("switch", "host")
                if is_up and link.target not in seen and not graph.node(name).name.startswith("host"):
                    seen.add(link.target)
                    at.append(link.target)
        for name in seen:
            if name.startswith("host"):
                found.setdefault(name, set()).add(node.name)
    return found


def gpus_of(graph: Topology) -> dict[str, list[str]]:
    return {host: sorted(name for name in leaves if name.startswith("cuda")) for host, leaves in hosts(graph).items()}


@pytest.mark.parametrize("name", ["hgx-h100.json", "hgx-h100.txt", "h100-four-nics.txt"])
def test_gpus_hang_on_their_numa_nodes(name: str) -> None:
    found = gpus_of(topology(machine(name)))
    assert found == {
        "host:0": ["cuda:0", "cuda:1", "cuda:2", "cuda:3"],
        "host:1": ["cuda:4", "cuda:5", "cuda:6", "cuda:7"],
    }


@pytest.mark.parametrize("name", ["dgx-a100.json", "dgx-a100.txt"])
def test_on_a_dgx_a100_gpus_and_network_devices_share_nested_switches_in_fours(name: str) -> None:
    found = hosts(topology(machine(name)))
    for number, gpus, nics in ((3, (0, 1), (0, 1)), (1, (2, 3), (2, 3)), (7, (4, 5), (6, 7)), (5, (6, 7), (8, 9))):
        assert {*(f"cuda:{gpu}" for gpu in gpus), *(f"nic:mlx5_{nic}" for nic in nics)} <= found[f"host:{number}"]
    for gpu in machine(name).gpus:
        near = {3: [0, 1], 1: [2, 3], 7: [6, 7], 5: [8, 9]}[gpu.numa or 0]
        assert [nic.name for nic in nearest_nics(machine(name), gpu)] == [f"mlx5_{index}" for index in near]


def test_of_eight_gpus_with_four_near_network_devices_the_others_have_none() -> None:
    found = machine("h100-four-nics.txt")
    assert [[nic.name for nic in nearest_nics(found, gpu)] for gpu in found.gpus] == [
        ["mlx5_0"], [], ["mlx5_1"], [], ["mlx5_2"], [], ["mlx5_3"], [],
    ]  # fmt: skip
    # Though SYS, far, from each other they are on one NUMA node: the graph goes by that, and says so.
    [told] = doubts(found)
    assert "the graph goes by the numbers of the nodes" in told


def test_a_tray_and_its_neighbour_are_one_graph_by_the_name_of_their_domain() -> None:
    tray = machine("gb200-tray.json")
    here = topology(tray)
    domain = next(node.name for node in here.nodes if node.kind == "switch")
    other = topology(replace(tray, gpus=tuple(replace(gpu, uuid=f"GPU-ee{gpu.index}") for gpu in tray.gpus)))
    assert domain in {node.name for node in other.nodes}


def test_a_tray_of_another_clique_is_in_another_domain() -> None:
    tray = machine("gb200-tray.json")

    def moved(gpu: Gpu) -> Gpu:
        assert gpu.fabric is not None
        return replace(gpu, fabric=replace(gpu.fabric, cliques=(replace(gpu.fabric.cliques[0], id=8),)))

    graph = topology(replace(tray, gpus=(*tray.gpus[:2], *map(moved, tray.gpus[2:]))))
    cluster = "0123456789abcdef" * 2
    assert {target for source, target in nvlinks(graph) if source == "cuda:0"} == {f"nvlink-domain:{cluster}.7"}
    assert {target for source, target in nvlinks(graph) if source == "cuda:3"} == {f"nvlink-domain:{cluster}.8"}


@pytest.mark.parametrize(
    "fabric", [Fabric("in progress"), Fabric("not started"), Fabric("completed", status=999)], ids=str
)
def test_who_has_not_joined_its_domain_has_no_nvlinks_yet(fabric: Fabric) -> None:
    whole = machine("hgx-h100.json")
    part = replace(whole, gpus=(replace(whole.gpus[0], fabric=fabric), *whole.gpus[1:]))
    assert not [pair for pair in nvlinks(topology(part)) if "cuda:0" in pair]
    assert f"GPU 0 is no member of its NVLink domain: {fabric.state}" in doubts(part)[0]


def test_what_the_setting_hides_is_not_in_the_graph_and_the_rest_is_numbered_as_torch_does() -> None:
    found = machine("hgx-h100.json")
    graph = topology(found, visible(found, "5,0").seen)
    assert [node.attributes["uuid"] for node in graph.devices] == [found.gpus[5].uuid, found.gpus[0].uuid]
    assert nvlinks(graph).keys() == {
        ("cuda:0", "nvswitch"), ("cuda:1", "nvswitch"), ("nvswitch", "cuda:0"), ("nvswitch", "cuda:1"),
    }  # fmt: skip
    bridged = machine("a100-pcie-bridges.json")
    assert nvlinks(topology(bridged, visible(bridged, "0,3").seen)) == {}


def test_an_instance_has_no_nvlinks() -> None:
    found = machine("mig.json")
    graph = topology(found, visible(found, None).seen)
    assert nvlinks(graph) == {}
    [node] = graph.devices
    assert node.attributes["mig"] is True
    assert node.attributes["model"] == "NVIDIA A100-SXM4-80GB MIG 3g.40gb"


def test_a_gpu_that_is_lost_is_not_in_the_graph() -> None:
    graph = topology(machine("half-broken.json"))
    assert "cuda:3" not in {node.name for node in graph.nodes}
    assert doubts(machine("half-broken.json")) == ("whether GPU 5 has NVLinks is not known",)


def test_links_of_pci_have_the_rate_of_their_lanes() -> None:
    rates = {
        name: {link.bandwidth for link in topology(machine(name)).links if link.source.startswith("cuda:")}
        for name in ("a100-pcie-bridges.json", "gb200-tray.json")
    }
    assert rates == {"a100-pcie-bridges.json": {300e9, 16 * 1.969e9}, "gb200-tray.json": {900e9, 16 * 3.938e9}}


def two(*links: NvLink, back: tuple[NvLink, ...] = (), **pair: bool | None) -> Machine:
    gpus = (
        Gpu(0, pci="0000:01:00.0", nvlinks=links, numa=0),
        Gpu(1, pci="0000:02:00.0", nvlinks=back, numa=0),
    )
    return Machine("made up", gpus, pairs=(Pair(0, 1, **pair),))  # type: ignore[arg-type]


def to(peer: str | None, number: int = 0, version: str | None = "3.0", remote: str | None = "gpu") -> NvLink:
    return NvLink(number, version, remote, peer)


def test_links_that_only_one_of_two_has_are_a_contradiction() -> None:
    with pytest.raises(TopologyError, match="GPU 0 has 1 NVLinks to GPU 1, which has 0 back to it"):
        topology(two(to("0000:02:00.0")))


def test_links_over_which_the_driver_lets_nobody_talk_are_left_out_and_told_of() -> None:
    closed = two(to("0000:02:00.0"), back=(to("0000:01:00.0"),), over_nvlink=False)
    assert nvlinks(topology(closed)) == {}
    assert doubts(closed) == ("GPUs 0 and 1 have NVLinks, over which the driver lets them not talk",)


def test_an_old_driver_says_only_the_address_at_the_other_end() -> None:
    old = two(to("0000:02:00.0", remote=None), back=(to("0000:01:00.0", remote=None),))
    assert nvlinks(topology(old)) == {("cuda:0", "cuda:1"): 25e9, ("cuda:1", "cuda:0"): 25e9}


@pytest.mark.parametrize(("remote", "peer"), [("unknown", "0000:02:00.0"), (None, "0000:77:00.0"), (None, None)])
def test_a_link_to_what_is_not_known_is_no_link_and_told_of(remote: str | None, peer: str | None) -> None:
    odd = two(to(peer, remote=remote))
    assert nvlinks(topology(odd)) == {}
    assert doubts(odd) == ("GPU 0: 1 NVLinks lead to what is not known",)


def test_where_one_links_version_is_not_known_the_bandwidth_is_not() -> None:
    links = (to("0000:02:00.0"), to("0000:02:00.0", 1, version=None))
    back = (to("0000:01:00.0"), to("0000:01:00.0", 1))
    graph = topology(two(*links, back=back))
    assert nvlinks(graph)["cuda:0", "cuda:1"] is None
    assert nvlinks(topology(two(*links, back=tuple(replace(link, version=None) for link in back)))) == {
        ("cuda:0", "cuda:1"): None,
        ("cuda:1", "cuda:0"): None,
    }


def test_gpus_on_switches_of_which_nothing_more_is_known_are_not_joined() -> None:
    on_switch = (to(None, remote="switch", version="4.0"),)
    unknown = two(*on_switch, back=on_switch)
    assert nvlinks(topology(unknown)) == {}
    assert "which GPUs share NVLink switches is not known" in doubts(unknown)
    assert nvlinks(topology(two(*on_switch, back=on_switch, over_nvlink=True))) == {
        ("cuda:0", "nvswitch"): 25e9, ("nvswitch", "cuda:0"): 25e9,
        ("cuda:1", "nvswitch"): 25e9, ("nvswitch", "cuda:1"): 25e9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "gpus", "is_switched"),
    [(12, 3, True), (18, 4, True), (6, 4, False), (4, 4, False), (18, 2, False), (1, 8, False), (6, 16, True)],
)
def test_more_links_than_a_gpu_has_go_through_a_switch(count: int, gpus: int, is_switched: bool) -> None:
    pairs = tuple(Pair(first, second, nvlinks=count) for first in range(gpus) for second in range(first + 1, gpus))
    graph = topology(Machine("made up", tuple(Gpu(index, numa=0) for index in range(gpus)), pairs=pairs))
    assert ("nvswitch" in {node.name for node in graph.nodes}) is is_switched


def test_a_mesh_of_unequal_links_is_no_switch() -> None:
    # Part of a DGX-1: some pairs have two links, some one, some none.
    counts = {(0, 1): 1, (0, 2): 1, (0, 3): 2, (1, 2): 2, (1, 3): 1, (2, 3): 2}
    pairs = tuple(Pair(*key, nvlinks=count) for key, count in counts.items())
    graph = topology(Machine("made up", tuple(Gpu(index, numa=0) for index in range(4)), pairs=pairs))
    ways = {*counts, *((other, one) for one, other in counts)}
    assert nvlinks(graph) == {(f"cuda:{one}", f"cuda:{other}"): None for one, other in ways}
    assert [node.kind for node in graph.nodes] == ["device"] * 4 + ["host"]


PORT, UP, DOWN = "0000:10:01.0", "0000:11:00.0", "0000:12:{:02x}.0"


def placed(*path: str, numa: int | None = 0, index: int = 0) -> Gpu:
    return Gpu(index, pci=path[-1], path=path, numa=numa)


@pytest.mark.parametrize(
    ("one", "other", "numas", "between"),
    [
        ((PORT, UP, DOWN.format(0), "0000:13:00.0"), (PORT, UP, DOWN.format(1), "0000:14:00.0"), (0, 0), "single"),
        ((PORT, UP, "0000:13:00.0"), (PORT, UP, "0000:13:00.1"), (0, 0), "single"),
        (
            (PORT, UP, DOWN.format(0), "0000:13:00.0", "0000:14:00.0", "0000:15:00.0"),
            (PORT, UP, DOWN.format(1), "0000:16:00.0"),
            (0, 0),
            "multiple",
        ),
        ((PORT, "0000:11:00.0"), ("0000:10:02.0", "0000:12:00.0"), (0, 0), "hostbridge"),
        ((PORT, "0000:11:00.0"), ("0000:20:01.0", "0000:21:00.0"), (0, 0), "node"),
        ((PORT, "0000:11:00.0"), ("0000:20:01.0", "0000:21:00.0"), (0, 1), "system"),
        ((PORT, "0000:11:00.0"), ("0000:20:01.0", "0000:21:00.0"), (0, None), None),
        (("0000:00:05.0",), ("0000:00:06.0",), (None, None), "hostbridge"),  # as in virtual machines
        (("0001:00:00.0", "0001:01:00.0"), ("0000:00:00.0", "0000:01:00.0"), (0, 0), "node"),
    ],
)
def test_what_is_between_two_devices_follows_from_their_paths(
    one: tuple[str, ...], other: tuple[str, ...], numas: tuple[int | None, int | None], between: str | None
) -> None:
    ends = placed(*one, numa=numas[0]), placed(*other, numa=numas[1])
    assert ancestor(*ends) == between
    assert ancestor(*reversed(ends)) == between


def test_without_paths_only_different_numa_nodes_say_something() -> None:
    assert ancestor(Gpu(0, numa=0), Gpu(1, numa=1)) == "system"
    assert ancestor(Gpu(0, numa=0), Gpu(1, numa=0)) is None
    assert ancestor(Gpu(0), Gpu(1, numa=0)) is None


def test_what_contradicts_itself_is_no_graph() -> None:
    gpus = tuple(Gpu(index) for index in range(3))
    pairs = (Pair(0, 1, ancestor="single"), Pair(1, 2, ancestor="single"), Pair(0, 2, ancestor="system"))
    with pytest.raises(TopologyError, match="GPU 0 and GPU 2 share PCI, level 'single', and do not"):
        topology(Machine("made up", gpus, pairs=pairs))
    apart = (Gpu(0, numa=0), Gpu(1, numa=1))
    with pytest.raises(TopologyError, match="is on NUMA nodes 0, 1"):
        topology(Machine("made up", apart, pairs=(Pair(0, 1, ancestor="single"),)))


def test_where_nothing_says_which_numa_node_gpus_hang_on_one_host() -> None:
    unknown = Machine("made up", (Gpu(0), Gpu(1)), nics=(Nic("eth0"),))
    graph = topology(unknown)
    assert gpus_of(graph) == {"host": ["cuda:0", "cuda:1"]}
    assert doubts(unknown) == (
        "whether GPU 0, 1 has NVLinks is not known",
        "which GPUs are on one NUMA node is not known",
        "where on PCI eth0 is, is not known",
    )


def test_a_network_device_that_is_far_from_all_is_reached_through_the_processors() -> None:
    far = Machine("made up", (Gpu(0, nvlinks=(), numa=0),), nics=(Nic("a"),), nearness=(Nearness(0, "a", "system"),))
    graph = topology(far)
    assert [(link.target, link.kind) for link in graph.links_from("nic:a")] == [("host:0", "smp")]
