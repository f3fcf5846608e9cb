from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import TopologyError
from devices.topology import Link, Node, Topology, machines, read, write
from devices.topology.files import from_data, from_json, from_toml, to_json, to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(bool)
VALUES = st.recursive(
    st.one_of(TEXT, st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
NODES = st.builds(Node, NAMES, st.sampled_from(["device", "switch", "nic", "host"]), st.dictionaries(TEXT, VALUES))
FIGURES = st.one_of(st.none(), st.integers(1, 10**15), st.floats(1e-9, 1e15))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    nodes = draw(st.lists(NODES, min_size=1, max_size=4, unique_by=lambda node: node.name))
    names = [node.name for node in nodes]
    ends = st.tuples(st.sampled_from(names), st.sampled_from(names), TEXT).filter(lambda ends: ends[0] != ends[1])
    links = []
    if len(names) > 1:
        for source, target, kind in draw(st.lists(ends, max_size=4, unique=True)):
            links.append(Link(source, target, kind, draw(FIGURES), draw(FIGURES), draw(TEXT), draw(TEXT)))
    return Topology(nodes, links, draw(TEXT))


@given(topologies())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_written_is_read_back_equal(topology: Topology) -> None:
    assert from_json(to_json(topology)) == topology
    assert from_toml(to_toml(topology)) == topology


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_a_file_holds_a_topology(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"dgx.{ending}"
    write(machines(2, 4, 300e9, 25e9), path)
    assert read(path) == machines(2, 4, 300e9, 25e9)


def test_a_person_may_write_both_directions_of_a_link_at_once() -> None:
    text = """
    name = "pair"
    [[nodes]]
    name = "cpu:0"
    [[nodes]]
    name = "cpu:1"
    [[links]]
    source = "cpu:0"
    target = "cpu:1"
    bandwidth = 32e9
    both = true
    """
    found = from_toml(text)
    assert [(link.source, link.target, link.bandwidth) for link in found.links] == [
        ("cpu:0", "cpu:1", 32e9),
        ("cpu:1", "cpu:0", 32e9),
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "a topology is a table"),
        ({"node": []}, "'node'; did you mean 'nodes'"),
        ({"nodes": {}}, "`nodes` of a topology is a list"),
        ({"nodes": [{"kind": "device"}]}, "name is a text"),
        ({"nodes": [{"name": "a", "speed": 1}]}, "node 0 has a key 'speed'"),
        ({"nodes": [{"name": "a"}], "links": [{"source": "a"}]}, "link 0 .* no `target`"),
        ({"nodes": [{"name": "a"}], "links": [{"source": "a", "target": "b"}]}, "no node 'b'"),
        ({"nodes": [{"name": "a"}], "links": [{"source": "a", "target": "b", "both": 1}]}, "both = 1"),
        ({"nodes": [{"name": "a"}], "links": [{"source": "a", "target": "b", "bandwith": 1}]}, "mean 'bandwidth'"),
        ({"nodes": [], "name": 3}, "name is 3"),
    ],
)
def test_what_is_no_topology_is_an_error_that_says_where(data: object, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        from_data(data)
    with pytest.raises(TopologyError, match=said):
        from_json(json.dumps(data))


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    for name, text in (("a.json", "{"), ("a.toml", "= 3"), ("b.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(TopologyError, match=name):
            read(tmp_path / name)
    with pytest.raises(TopologyError, match=r"ends in \.json or \.toml"):
        read(tmp_path / "a.yaml")
    with pytest.raises(TopologyError, match=r"ends in \.json or \.toml"):
        write(machines(1, 1), tmp_path / "a.yaml")
