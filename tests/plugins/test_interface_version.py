"""The interface has a version: what was written for an older one works, what was written for a newer one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

import devices
from devices.errors import PluginError
from devices.roster import plugin as roster_plugin

WRITTEN_FOR_1 = """
from devices import Backend, Capabilities, Communicator, Device, Probe, hookimpl


class Done:
    def wait(self):
        pass

    def is_completed(self):
        return True


class Mailboxes(Communicator):
    boxes = {}

    def __init__(self, group):
        self.group = group

    def exchange(self, sends, recvs):
        for message in sends:
            key = f"{self.group.rank}-{message.peer}-{message.tag}"
            self.group.store.set(f"{key}-{self.count('sent ' + key)}", message.tensor.tolist())
        for message in recvs:
            import torch

            key = f"{message.peer}-{self.group.rank}-{message.tag}"
            found = self.group.store.get(f"{key}-{self.count('got ' + key)}")
            message.tensor.copy_(torch.tensor(found, dtype=torch.uint8))
        return Done()

    def count(self, what):
        counts = self.__dict__.setdefault("counts", {})
        counts[what] = counts.get(what, 0) + 1
        return counts[what]


class Backend1(Backend):
    name = "first"
    device_type = "cpu"
    priority = None
    interface = 1
    thread_ranks = True
    verified = "runs on every machine"

    def probe(self):
        return Probe(present=True, reason="it was here first")

    def devices(self):
        return [Device("first", "cpu", 0)]

    def capabilities(self, device):
        import torch

        return Capabilities(dtypes=frozenset({torch.float32}))

    def open(self, group):
        return Mailboxes(group)


@hookimpl
def devices_backend():
    return Backend1()
"""
"""A plugin as one could write it in the first release. Not to be changed: it stands for those that are out there."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_this_is_version_1() -> None:
    assert devices.INTERFACE_VERSION == 1


def test_a_plugin_of_version_1_works(site: Site) -> None:
    site.add("first", WRITTEN_FOR_1)
    code = """
        import torch, devices, devices.testing
        def program(world):
            total = devices.all_reduce(torch.tensor([float(world.rank), 1.0]))
            return total.tolist() + devices.all_gather(torch.tensor([float(world.rank)])).tolist()
        print(devices.testing.run(program, ranks=3, backend="first"))
    """
    assert site.python(code) == str([[3.0, 3.0, 0.0, 1.0, 2.0]] * 3)


def _backend(attributes: str) -> Any:
    space: dict[str, Any] = {}
    exec(PREAMBLE + attributes + GOOD_HOOK, space)  # the source of a plugin, as everywhere in these tests
    return space["Throwaway"]()


def test_a_later_version_takes_what_was_written_for_this_one_said_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_plugin, "INTERFACE_VERSION", 2)
    for attributes in ("", "Throwaway.interface = 1", "Throwaway.interface = 2"):
        roster_plugin._check_backend(_backend(attributes))
    with pytest.raises(PluginError, match="written for version 3 of the plugin interface; this is version 2"):
        roster_plugin._check_backend(_backend("Throwaway.interface = 3"))


def test_a_plugin_of_next_year_is_refused_with_both_versions_and_what_to_do(site: Site) -> None:
    site.add("toy", PREAMBLE + "Throwaway.interface = 2" + GOOD_HOOK)
    assert site.refusal("_choice.choose('toy')") == (
        "PluginError: plugin 'toy' of some-toy 1.2 is broken: backend 'toy' was written for version 2 of the plugin "
        "interface; this is version 1: upgrade devices, or install an older release of the plugin, one for version 1"
    )


@pytest.mark.slow
def test_a_module_without_a_backend_says_its_version_too(site: Site) -> None:
    site.add("watch", "from devices import Observer, hookimpl\ninterface = 2\n@hookimpl\ndef devices_observer(): ...")
    told = site.refusal("devices.observe('watch').__enter__()")
    assert "plugin 'watch' was written for version 2 of the plugin interface; this is version 1: upgrade" in told


def test_the_changelog_tells_authors_which_version_a_release_has() -> None:
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    newest = text.split("\n## ")[1]
    assert "### For authors of plugins" in newest
    assert f"version {devices.INTERFACE_VERSION} of the plugin interface" in newest
