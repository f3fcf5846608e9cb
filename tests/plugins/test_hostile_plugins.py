"""All broken plugins at once, installed as real distributions: nobody who did not ask for them is the worse for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hostile import ASKED, BROKEN, ODD, odd
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

pytestmark = pytest.mark.slow

POINTS = {
    "no_such_module": ("a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
    "no_such_attribute": ("json:nothing_here", "AttributeError: module 'json' has no attribute 'nothing_here'"),
    "no_such_syntax": ("!!", "is broken: "),
    "an_integer": ("sys:maxsize", "it implements no hook"),
}
"""Entry points that lead nowhere."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(tmp_path_factory.mktemp("site"), timeout=280)
    found.add("good", PREAMBLE + "Throwaway.name = 'good'\nThrowaway.priority = None" + GOOD_HOOK)
    for name, (source, _) in {**BROKEN, **ASKED}.items():
        found.add(name, source)
    for name in ODD:
        found.add(name, odd(name))
    for name, (value, _) in POINTS.items():
        found.add_entry_point(name, value)
    return found


@pytest.fixture(scope="module")
def report(site: Site) -> dict[str, Any]:
    """Return what doctor says of them all."""
    begun = time.monotonic()
    status, found = site.doctor()
    # 5 s for those that hang, the rest for a machine with much else to do.
    assert time.monotonic() - begun < 250
    assert status == 0
    return found


def test_there_are_many_of_them() -> None:
    assert len(BROKEN) + len(ASKED) + len(POINTS) >= 60


def test_doctor_lists_each_broken_plugin_with_its_distribution_its_version_and_the_cause(
    report: dict[str, Any],
) -> None:
    by_name = {plugin["name"]: plugin for plugin in report["plugins"]}
    for name, (_, fault) in {**BROKEN, **POINTS}.items():
        found = by_name[name]
        assert (found["distribution"], found["version"]) == (f"some-{name}", "1.2")
        assert found["error"].startswith(f"plugin {name!r} of some-{name} 1.2 is broken: "), found["error"]
        assert fault in found["error"], found["error"]
        assert found["backends"] == []
        assert found["error"] in report["problems"]


def test_doctor_says_of_each_backend_that_cannot_be_asked_why(report: dict[str, Any]) -> None:
    problems = "\n".join(report["problems"])
    for name, (_, fault) in ASKED.items():
        [said] = [
            line for line in report["problems"] if line.startswith((f"backend {name!r}: ", f"backend {name!r} of"))
        ]
        assert fault in said, problems
        assert f"of some-{name} 1.2" in said


def test_what_is_odd_but_not_wrong_is_there(report: dict[str, Any]) -> None:
    backends = {backend["name"]: backend for plugin in report["plugins"] for backend in plugin["backends"]}
    for name in (*ODD, "good"):
        assert backends[name]["present"], backends[name]
        assert backends[name]["devices"][0]["label"] == f"{name}:0"
    assert len(report["problems"]) == len(BROKEN) + len(ASKED) + len(POINTS)


def test_the_cpu_backend_is_opened_by_name_with_no_plugin_asked_or_imported(site: Site) -> None:
    code = """
        import os, sys
        import devices
        def refused(*args, **keywords):
            raise AssertionError("a child was started")
        from devices.roster import survey
        survey.ask = refused
        import torch
        with devices.init("cpu") as world:
            print(devices.all_reduce(torch.ones(2)).tolist(), world.backend)
        print([name for name in sys.modules if "throwaway" in name])
    """
    assert site.python(code).splitlines() == ["[1.0, 1.0] cpu", "[]"]


def test_a_program_that_knows_only_torch_opens_the_cpu_backend_too(site: Site) -> None:
    code = """
        import torch, torch.distributed as dist
        dist.init_process_group("devices", store=dist.HashStore(), rank=0, world_size=1)
        x = torch.ones(2)
        dist.all_reduce(x)
        print(x.tolist())
        dist.destroy_process_group()
    """
    assert site.python(code, DEVICES_BACKEND="cpu") == "[1.0, 1.0]"


def test_auto_takes_one_that_is_whole_and_says_of_each_other_why_not(site: Site) -> None:
    code = """
        import time, devices
        from devices import _choice, _registry
        begun = time.monotonic()
        choice = _choice.choose()
        assert time.monotonic() - begun < 200
        print(choice)
        from devices.roster import survey
        survey.ask = None  # nobody is asked again
        _choice.choose(), devices.backends(), _registry.plugins()
        print("asked once")
    """
    told = site.python(code)
    assert told.startswith("backend 'cpu': the best that is present; ")
    assert told.splitlines()[-1] == "asked once"
    assert "probe_segfault: absent, backend 'probe_segfault': its probe's process was killed by SIGSEGV" in told


@pytest.mark.parametrize("name", ["segfault", "hangs", "sys_exit", "interrupt", "kills_its_parent"])
def test_who_asks_for_a_broken_one_by_name_gets_its_error_and_lives(site: Site, name: str) -> None:
    told = site.refusal(f"_choice.choose({name!r})")
    assert told.startswith(f"PluginError: plugin {name!r} of some-{name} 1.2 is broken: ")
    assert BROKEN[name][1] in told


def test_nothing_that_hung_is_left_running(site: Site, report: dict[str, Any]) -> None:
    assert report["problems"]
    mark = str(site.folder)
    left = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            continue
        if process.name.isdigit() and mark in command and "survey_child" in command:
            left.append(command)
    assert left == []
