"""The hooks of links between backends and of targets for the catalogue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

from devices import catalogue

pytestmark = pytest.mark.slow

LINKED = (
    PREAMBLE
    + GOOD_HOOK
    + """
from devices import Link
Throwaway.capabilities = lambda self, device: Capabilities(frozenset(), links=(Link("toy:1", "wire", 5.0),))
"""
)
LINKS = """
from devices import Link, hookimpl

@hookimpl
def devices_links():
    return {}
"""
SHOW = """
import devices
for label, links in sorted(devices.links().items()):
    for link in links:
        print(label, link.peer, link.kind, link.bandwidth, link.latency)
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_links_are_those_of_capabilities_and_those_of_the_hook_each_once(site: Site) -> None:
    between = (
        '{"toy:0": [Link("cpu:0", "bus", 3.0, 1e-6), Link("toy:1", "wire", 5.0)], "cpu:0": (Link("toy:0", "bus"),)}'
    )
    site.add("toy", LINKED)
    site.add("between", LINKS.format(between))
    assert site.python(SHOW).splitlines() == [
        "cpu:0 toy:0 bus None None",
        "toy:0 toy:1 wire 5.0 None",
        "toy:0 cpu:0 bus 3.0 1e-06",
    ]


WRONG_LINKS = {
    "1 / 0": "its hook `devices_links` raised ZeroDivisionError",
    "exit(3)": "its hook `devices_links` raised SystemExit: 3",
    "[Link('toy:0', 'bus')]": "not a dict of links by the device that they start at",
    "{'toy': [Link('cpu:0', 'bus')]}": "'toy' is no device; 'cuda:0' is one",
    "{3: [Link('cpu:0', 'bus')]}": "3 is no device",
    "{'toy:0': 3}": "reading what its hook `devices_links` returned raised TypeError",
    "{'toy:0': ['cpu:0']}": "toy:0 has 'cpu:0', which is no devices.Link",
    "{'toy:0': [Link('toy:0', 'bus')]}": "toy:0 has a link to 'toy:0', which is no other device",
    "{'toy:0': [Link('cpu:0', '')]}": "toy:0 has a link of kind ''",
    "{'toy:0': [Link('cpu:0', 'bus', -1.0)]}": "toy:0 has a link whose bandwidth is -1.0",
    "{'toy:0': [Link('cpu:0', 'bus', latency=float('nan'))]}": "toy:0 has a link whose latency is nan",
}


def test_wrong_links_are_an_error_of_their_plugin_and_the_others_stay(site: Site) -> None:
    for number, stated in enumerate(WRONG_LINKS):
        site.add(f"wrong{number:02}", LINKS.format(stated))
    site.add("right", LINKS.format("{'cpu:0': [Link('toy:0', 'bus')]}"))
    code = SHOW + "from devices import _registry\nprint(*_registry.link_errors(), sep='\\n')"
    link, *errors = site.python(code).splitlines()
    assert link == "cpu:0 toy:0 bus None None"
    for number, (error, fault) in enumerate(zip(errors, WRONG_LINKS.values(), strict=True)):
        assert error.startswith(f"plugin 'wrong{number:02}' of some-wrong{number:02} 1.2: ")
        assert fault in error


TARGETS = """
from devices import hookimpl

@hookimpl
def devices_targets():
    return {}
"""
ASK = """
from devices import catalogue
print("mine" in catalogue.names(), "trainium2" in catalogue.names())
print(*catalogue.faults(), sep="\\n")
try:
    target = catalogue.load("mine")
    print(target.title, target.kind)
except LookupError as error:
    print(error)
"""


def entry(folder: Path) -> Path:
    """Return a folder that has one entry, the chip "mine", which cites the built-in sources."""
    folder.mkdir()
    text = (Path(catalogue.__file__).parent / "h100.toml").read_text()
    (folder / "mine.toml").write_text(text.replace("NVIDIA H100 SXM", "My own"))
    return folder


def test_a_folder_of_targets_is_added_to_the_catalogue(site: Site) -> None:
    folder = entry(site.folder / "entries")
    site.add("lab", TARGETS.format(repr(str(folder))))
    assert site.python(ASK).splitlines() == ["True True", "", "My own chip"]


def test_so_is_the_text_of_files_and_a_target_can_be_emulated(site: Site) -> None:
    text = (entry(site.folder / "entries") / "mine.toml").read_text()
    shutil.rmtree(site.folder / "entries")
    site.add("lab", TARGETS.format(json.dumps({"mine.toml": text})))
    code = """
        import devices.testing
        with devices.testing.emulate("mine") as emulation:
            print(emulation.target)
    """
    assert site.python(code) == "mine"


def test_the_built_in_targets_are_loaded_with_no_look_at_plugins(site: Site) -> None:
    site.add("lab", "open('imported', 'w')\n" + TARGETS.format("1 / 0"))
    assert site.python("from devices import catalogue; print(catalogue.load('trainium2'))") == "trainium2 at LNC 2"
    assert not (site.folder / "imported").exists()


WRONG_TARGETS = {
    "1 / 0": "its hook `devices_targets` raised ZeroDivisionError",
    "3": "its hook `devices_targets` returned 3, neither a folder nor a dict",
    "'/no/such/folder'": "returned '/no/such/folder', which is no folder",
    "{'mine': 'kind = 3'}": "it must be a file's text by its name.toml",
    "{'mine.toml': 'kind = '}": "a target that it adds is wrong: mine.toml: is no TOML",
    "{'mine.toml': 'kind = \"chop\"'}": "mine.toml: kind: must be one of",
    "{'mine.toml': 'kind = \"chip\"\\ntitle = \"x\"'}": "mine.toml: software: is missing",
    "{'trainium2.toml': 'kind = \"chip\"'}": "trainium2.toml: catalogue has an entry of that name",
    "{'sources.toml': 'nccl = \"a lie\"'}": "sources.toml: nccl: another folder has a source of that name",
}


def test_wrong_targets_are_an_error_of_their_plugin_and_the_others_stay(site: Site) -> None:
    for number, stated in enumerate(WRONG_TARGETS):
        site.add(f"a{number}", TARGETS.format(stated))
    site.add("right", TARGETS.format(repr(str(entry(site.folder / "entries")))))
    is_there, *errors, loaded = site.python(ASK).splitlines()
    assert (is_there, loaded) == ("True True", "My own chip")
    for fault in WRONG_TARGETS.values():
        assert [error for error in errors if error.startswith("plugin 'a") and fault in error], fault
    assert len(errors) == len(WRONG_TARGETS)


def test_of_two_plugins_that_add_one_name_the_first_by_distribution_has_it(site: Site) -> None:
    folder = entry(site.folder / "entries")
    for name in ("one", "two"):
        site.add(name, TARGETS.format(repr(str(folder))))
    told = site.python(ASK).splitlines()
    assert told[1].startswith("plugin 'two' of some-two 1.2: a target that it adds is wrong: mine.toml: ")
    assert told[2] == "My own chip"


def test_who_asks_for_a_target_that_a_broken_plugin_was_to_add_is_told_of_it(site: Site) -> None:
    site.add("lab", TARGETS.format("{'mine.toml': 'kind = '}"))
    told = site.python(ASK).splitlines()
    assert told[0] == "False True"
    assert told[2].startswith("no target named 'mine'")
    assert "plugins that were to add targets are broken:" in told[2]
    assert "mine.toml: is no TOML" in told[3]


def test_doctor_lists_wrong_links_and_targets_among_the_problems(site: Site) -> None:
    site.add("lab", TARGETS.format("1 / 0"))
    site.add("wires", LINKS.format("1 / 0"))
    site.add("good", LINKS)
    status, report = site.doctor()
    assert status == 0
    assert report["problems"] == [
        "plugin 'wires' of some-wires 1.2: its hook `devices_links` raised ZeroDivisionError: division by zero",
        "plugin 'lab' of some-lab 1.2: its hook `devices_targets` raised ZeroDivisionError: division by zero",
    ]
    assert {plugin["name"]: plugin["hooks"] for plugin in report["plugins"]}["good"] == ["devices_links"]
