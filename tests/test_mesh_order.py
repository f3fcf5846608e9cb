from __future__ import annotations

import pytest
import torch

import devices
from devices import Backend, Capabilities, Communicator, Device, Group, Probe
from devices._mesh_order import order_here
from devices.errors import MeshError, TopologyError
from devices.testing import run
from devices.topology import Link, Node, Topology, both, machines, of_target, ring

# Ranks 0 and 2 are on one machine, 1 and 3 on the other.
CROSSED = Topology(
    [
        *(Node(f"cpu:{place}") for place in range(4)),
        Node("left", "switch"),
        Node("right", "switch"),
        Node("net", "switch"),
    ],
    both(
        *(Link(f"cpu:{rank}", "left" if rank % 2 == 0 else "right", "in", 100.0) for rank in range(4)),
        *(Link(f"cpu:{rank}", "net", "out", 1.0) for rank in range(4)),
    ),
)


def test_a_mesh_is_laid_on_the_topology_that_is_given() -> None:
    def lay(world: devices.World) -> tuple[list[list[int]], float, int]:
        mesh = world.mesh({"dp": 2, "tp": 2}, topology=CROSSED)
        total = devices.all_reduce(torch.tensor([float(world.rank)]), mesh["tp"])
        return mesh.mesh.tolist(), total.item(), mesh["tp"].get_local_rank()

    found = run(lay, ranks=4)
    assert all({frozenset(row) for row in places} == {frozenset({0, 2}), frozenset({1, 3})} for places, _, _ in found)
    # Each sums the numbers of the two ranks of its machine.
    assert [total for _, total, _ in found] == [2.0, 4.0, 2.0, 4.0]
    assert sorted(at for _, _, at in found) == [0, 0, 1, 1]


def test_traffic_says_which_axis_is_to_be_near() -> None:
    def lay(world: devices.World) -> list[list[int]]:
        return world.mesh({"dp": 2, "tp": 2}, topology=CROSSED, traffic={"dp": 1e9, "tp": 1}).mesh.tolist()

    [places, *_] = run(lay, ranks=4)
    columns = {frozenset(column) for column in zip(*places, strict=True)}
    assert columns == {frozenset({0, 2}), frozenset({1, 3})}


def test_without_a_topology_ranks_are_in_the_order_of_their_numbers() -> None:
    found = run(lambda world: world.mesh({"dp": 2, "tp": 2}).mesh.tolist(), ranks=4)
    assert found == [[[0, 1], [2, 3]]] * 4


def test_a_topology_of_other_devices_is_refused() -> None:
    with devices.init("cpu") as world:
        with pytest.raises(MeshError, match=r"^rank 0 of 1: .* has 2 devices, and the world has 1 ranks"):
            world.mesh({"dp": 1}, topology=ring(2, 1))
        with pytest.raises(TopologyError, match=r"^rank 0 of 1: .*bandwidth"):
            world.mesh({"dp": 1}, topology=Topology([Node("a"), Node("s", "switch")], both(Link("a", "s"))))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ring", "got 'ring'"),
        (3, "got an object of type int"),
        (of_target("trainium3-ultracluster"), "got an object of type Cluster"),
    ],
    ids=["text", "number", "cluster"],
)
def test_what_is_no_topology_is_refused_with_what_makes_one(given: object, said: str) -> None:
    with (
        devices.init("cpu") as world,
        pytest.raises(
            TopologyError, match=f"^rank 0 of 1: the topology of a mesh is .* of 1 devices, {said}; of_target"
        ),
    ):
        world.mesh({"dp": 1}, topology=given)


class Known(Backend):
    """A backend that knows of a topology."""

    name = "known"
    device_type = "cpu"

    def __init__(self, topology: Topology | None) -> None:
        self._topology = topology

    def probe(self) -> Probe:
        return Probe(True, "it is here")

    def devices(self) -> tuple[Device, ...]:
        return (Device(self.name, "cpu", 0),)

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(frozenset())

    def open(self, group: Group) -> Communicator:
        raise NotImplementedError

    def topology(self) -> Topology | None:
        return self._topology


AXES = {"dp": 2, "tp": 2}
CPU = torch.device("cpu")


def asked(*known: Topology | None, named: str = "cpu:{}") -> list[tuple[int, ...]]:
    """Return what ranks take whose backends know of these topologies."""

    def ask(world: devices.World) -> tuple[int, ...]:
        backend = Known(known[world.rank % len(known)])
        return order_here(backend, named.format(world.rank), AXES, world.rank, world.size, CPU, None)

    return run(ask, ranks=4)


def test_what_the_backend_knows_of_the_ranks_devices_orders_them_alike_on_all_ranks() -> None:
    first, *others = asked(CROSSED)
    assert others == [first] * 3
    assert {frozenset(first[:2]), frozenset(first[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


@pytest.mark.parametrize(
    "known",
    [
        (None,),
        (CROSSED, None),
        (machines(3, 2, 9, 1, device="cpu"),),
        (ring(4, device="cpu"),),
        (Topology([Node(f"cpu:{place}") for place in range(4)]),),
    ],
    ids=["none", "not on all ranks", "other devices", "no bandwidths", "not connected"],
)
def test_where_that_does_not_serve_ranks_are_in_the_order_of_their_numbers(known: tuple[Topology | None, ...]) -> None:
    assert asked(*known) == [(0, 1, 2, 3)] * 4


def test_devices_that_are_not_the_ranks_in_order_do_not_serve() -> None:
    assert asked(CROSSED, named="cpu:0") == [(0, 1, 2, 3)] * 4
