"""`devices topo`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from devices.__main__ import main
from devices.topology import (
    Link,
    Node,
    Topology,
    both,
    fat_tree,
    machines,
    networked,
    of_target,
    rails,
    read,
    ring,
    switch,
    torus,
    write,
)
from devices.topology.drawing import svg
from devices.topology.files import from_json

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_a_target_is_shown_as_a_table_with_the_status_of_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", "trn2.48xlarge"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].startswith("trn2.48xlarge")
    assert lines[1].strip() == "16 devices"
    [row] = [line for line in lines if line.strip().startswith("device:0 ")]
    # To itself nothing, 128 GB/s to the devices 1, 3, 4 and 12.
    assert row.split()[1:] == ["128", "·", "128", "128", *"·······", "128", "·", "·", "·"]
    assert "inferred" in shown


def test_bounds_are_said_with_their_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(machines(2, 8, 300e9, 25e9), tmp_path / "dgx.toml")
    assert main(["topo", str(tmp_path / "dgx.toml"), "--bounds"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "all_gather 346.667 GB/s for each byte 15/16 must leave 18 nodes" in shown
    assert "all_reduce 173.333 GB/s" in shown


def test_this_host_is_shown_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo"]) == 0
    assert capsys.readouterr().out.startswith("this host")


def test_a_cluster_is_counted_and_a_part_of_it_shown_as_any_topology(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", "trainium1-ultracluster"]) == 0
    shown = capsys.readouterr().out
    assert "100,000 devices, 6,250 members, a network" in shown
    # Two directions of two rings of each of 16 chips, and the network's.
    assert shown.count("100,000 ") == 3
    assert "400,000 " in shown
    assert main(["topo", "trainium1-ultracluster", "--members", "1", "--json"]) == 0
    assert from_json(capsys.readouterr().out) == of_target("trainium1-ultracluster").part(1)
    for wrong in (["trainium1-ultracluster", "--json"], ["p5.48xlarge", "--members", "2"], ["--chips", "4,4"]):
        assert main(["topo", *wrong]) == 2
        assert capsys.readouterr().err


def test_a_domain_of_two_kinds_is_shown_as_speculative(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", "trainium4-nvlink-fusion", "--chips", "2,2", "--bounds"]) == 0
    shown = capsys.readouterr().out
    assert "(speculative)" in shown
    assert "assumed" in shown
    assert main(["topo", "trainium4-nvlink-fusion"]) == 2
    assert "how many are trainium4 and how many rubin" in capsys.readouterr().err


def test_json_is_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", "p5.48xlarge", "--json"]) == 0
    assert from_json(capsys.readouterr().out) == of_target("p5.48xlarge")


def test_what_cannot_be_shown_is_an_error_that_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text("{")
    asked = {"trn9": "trn9", str(tmp_path / "none.json"): "none.json", str(tmp_path / "wrong.json"): "no JSON"}
    for what, said in asked.items():
        assert main(["topo", what]) == 2
        assert said in capsys.readouterr().err
    # Bounds need what is not known of this one.
    assert main(["topo", "trainium3-ultraserver-gen1", "--bounds"]) == 2
    assert "is not known" in capsys.readouterr().err


STRANGE = Topology(
    [Node('a "<&>"'), Node("b"), Node("s", "switch"), Node("n", "nic"), Node("h", "host")],
    both(Link('a "<&>"', "s"), Link("b", "s", "<k>", 1)),
)


@pytest.mark.parametrize(
    "topology",
    [
        torus((4, 4, 4), 50),
        torus((2, 3), 50),
        ring(5),
        switch(8, 450, reduces=True),
        rails(2, 4, 450, 50),
        fat_tree(2, 4, 2, 10),
        networked([switch(4, 450, device="cuda"), torus((2, 2), 64, device="neuron")], [50, 25]),
        switch(1, 1),
        STRANGE,
    ],
    ids=str,
)
def test_a_picture_has_every_node_apart_and_every_pair_once(topology: Topology, tmp_path: Path) -> None:
    drawn = ElementTree.fromstring(svg(topology))
    groups = drawn.findall(f"{NAMESPACE}g")
    assert [group.get("data-name") for group in groups] == [node.name for node in topology.nodes]
    centres = []
    for group in groups:
        if (circle := group.find(f"{NAMESPACE}circle")) is not None:
            centres.append((float(circle.get("cx", "")), float(circle.get("cy", ""))))
        else:
            [box] = group.findall(f"{NAMESPACE}rect")
            centres.append((float(box.get("x", "")) + 15, float(box.get("y", "")) + 15))
    assert len(set(centres)) == len(centres)
    pairs = {frozenset((link.source, link.target)) for link in topology.links}
    assert len(drawn.findall(f"{NAMESPACE}path")) == len(pairs)


def test_a_picture_is_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ring(4, 5e9), tmp_path / "ring.json")
    assert main(["topo", str(tmp_path / "ring.json"), "--svg", str(tmp_path / "ring.svg")]) == 0
    assert "4 devices" in capsys.readouterr().out
    text = (tmp_path / "ring.svg").read_text()
    assert text == svg(read(tmp_path / "ring.json"))
    assert "device:0 to device:1: ring 5 GB/s" in text
