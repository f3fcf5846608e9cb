"""What backends and plugins know of a host, put together; strangers are asked in a child process."""

from __future__ import annotations

from pathlib import Path

import pytest
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

GRAPH = (
    PREAMBLE
    + GOOD_HOOK
    + """
def topology(self):
    from devices.topology import switch
    return switch(2, 5e9, 1e-6, device="toy", name="toy switch", reduces=True)
Throwaway.topology = topology
"""
)
PLAIN = (
    PREAMBLE
    + GOOD_HOOK
    + """
from devices import Link
Throwaway.capabilities = lambda self, device: Capabilities(frozenset(), links=(Link("toy:1", "wire", 5.0),))
"""
)
BETWEEN = """
from devices import Link, hookimpl

@hookimpl
def devices_links():
    return {"cpu:0": [Link("toy:0", "pcie", 64e9)], "toy:0": [Link("cpu:0", "pcie", 64e9)]}
"""
SHOW = """
from devices.topology import discover
found = discover()
print(*(f"{node.name}={node.kind}" for node in found.nodes), sep=", ")
print(*(f"{link.source}>{link.target}:{link.kind}:{link.bandwidth}" for link in found.links), sep=", ")
print(found.nodes[-1].reduces)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_host_without_accelerators_is_one_device(site: Site) -> None:
    assert site.python(SHOW).splitlines()[0] == "cpu:0=device"


def test_a_backends_graph_is_joined_to_the_links_that_plugins_know_of(site: Site) -> None:
    site.add("toy", GRAPH)
    site.add("between", BETWEEN)
    nodes, links, reduces = site.python(SHOW).splitlines()
    assert nodes == "cpu:0=device, toy:0=device, toy:1=device, toy switch=switch"
    assert links.split(", ") == [
        "cpu:0>toy:0:pcie:64000000000.0",
        "toy:0>cpu:0:pcie:64000000000.0",
        "toy:0>toy switch:switch:5000000000.0",
        "toy:1>toy switch:switch:5000000000.0",
        "toy switch>toy:0:switch:5000000000.0",
        "toy switch>toy:1:switch:5000000000.0",
    ]
    assert reduces == "True"


def test_a_backend_without_a_graph_gives_the_links_of_its_capabilities(site: Site) -> None:
    site.add("toy", PLAIN)
    nodes, links, _ = site.python(SHOW).splitlines()
    assert nodes == "cpu:0=device, toy:0=device, toy:1=device"
    assert links == "toy:0>toy:1:wire:5.0"


@pytest.mark.parametrize(("stated", "said"), [("3", "3, which is no devices.topology.Topology"), ("1 / 0", "ZeroDiv")])
def test_a_wrong_graph_is_an_error_of_its_plugin_and_its_devices_stay(site: Site, stated: str, said: str) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK + f"\nThrowaway.topology = lambda self: {stated}\n")
    code = SHOW + "from devices import _registry\nprint(*_registry.link_errors(), sep='\\n')"
    nodes, *_, error = site.python(code).splitlines()
    assert nodes == "cpu:0=device, toy:0=device"
    assert "backend 'toy'" in error
    assert said in error
