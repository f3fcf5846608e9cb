from __future__ import annotations

from fractions import Fraction

import pytest

from devices import catalogue
from devices.errors import TargetNotFoundError, TopologyError
from devices.topology import Topology, bound, of_target


def leaving(topology: Topology, name: str) -> float:
    return sum(link.bandwidth or 0 for link in topology.links_from(name))


def test_a_trainium2_machine_is_the_torus_that_is_documented() -> None:
    found = of_target("trn2.48xlarge", device="neuron")
    assert found.name.startswith("trn2.48xlarge")
    assert set(found.neighbours("neuron:0")) == {f"neuron:{place}" for place in (12, 3, 4, 1)}
    # 1024 GB/s for both directions, over four cables.
    assert {link.bandwidth for link in found.links} == {128e9}
    assert {link.status for link in found.links} == {"inferred"}
    assert all("ml-engineering" in link.origin for link in found.links)
    assert found.links[0].latency == pytest.approx(1.5e-6)
    assert 1 / bound(found, "all_gather").check() == Fraction(16 * 512 * 10**9, 15)


def test_a_trainium2_ultraserver_has_rings_through_its_machines() -> None:
    found = of_target("trainium2-ultraserver", device="neuron")
    assert len(found.devices) == 64
    assert set(found.neighbours("neuron:0")) == {f"neuron:{place}" for place in (12, 3, 4, 1, 16, 48)}
    # 512 within the machine, 128 to the machines before and behind.
    assert leaving(found, "neuron:0") == 640e9
    found.require_connected()


def test_gpus_on_nvlink_switches_have_the_figure_of_the_chip() -> None:
    found = of_target("p5.48xlarge", device="cuda")
    assert len(found.devices) == 8
    assert found.neighbours("cuda:3") == ("switch",)
    assert leaving(found, "cuda:3") == 450e9


def test_a_trainium3_ultraserver_has_its_tiers() -> None:
    found = of_target("trainium3-ultraserver-gen2")
    assert len(found.devices) == 144
    assert "switch:0" in found.neighbours("device:0")
    assert any(name.startswith("rack:") for name in found.neighbours("device:0"))
    # 256 within the sled and 320 within the rack at least.
    assert leaving(found, "device:0") >= 576e9
    found.require_connected()
    found.require_bandwidths()


def test_chips_in_a_line_have_ends() -> None:
    found = of_target("inf2.24xlarge")
    assert [len(found.neighbours(node.name)) for node in found.devices] == [1, 2, 2, 2, 2, 1]
    assert len(of_target("inf2.48xlarge").neighbours("device:0")) == 2


def test_what_is_not_known_stays_unknown_and_is_an_error_where_it_is_needed() -> None:
    found = of_target("trainium3-ultraserver-gen1")
    assert None in {link.bandwidth for link in found.links}
    with pytest.raises(TopologyError, match="is not known"):
        bound(found, "all_gather")
    with pytest.raises(TargetNotFoundError):
        of_target("trn9")
    with pytest.raises(TopologyError, match="is a chip, of which no graph is known"):
        of_target("h100")


@pytest.mark.parametrize("name", catalogue.names())
def test_every_target_of_the_catalogue_has_a_graph_or_says_why_not(name: str) -> None:
    target = catalogue.load(name)
    if target.kind in ("chip", "domain"):
        with pytest.raises(TopologyError, match=r"of which no graph is known|say `chips`"):
            of_target(target)
        return
    found = of_target(target)
    assert len(found.devices) == target.count("chip")
    found.require_connected()
