"""`devices conformance NAME`, in fresh interpreters with plugins of their own."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import ranks
from throwaway_plugins import GOOD_HOOK, PREAMBLE, Site

pytestmark = pytest.mark.slow

# Thread ranks over gloo, with one thing wrong. Importing torch could take longer than a plugin's import may.
BROADCASTS_FROM_THE_FIRST = """
from devices import Backend, Capabilities, Communicator, Device, Probe, hookimpl


class OverGloo(Communicator):
    def __init__(self, group):
        from devices import ProcessGroupCommunicator
        from torch.distributed import ProcessGroupGloo

        gloo = ProcessGroupGloo(group.store.torch, group.rank, group.size, group.timeout)
        self._group = ProcessGroupCommunicator(gloo)

    def exchange(self, sends, recvs):
        return self._group.exchange(sends, recvs)

    def broadcast(self, tensor, src):
        return self._group.broadcast(tensor, 0)

    def abort(self):
        self._group.abort()

    def close(self):
        self._group.close()


class Toy(Backend):
    name = "toy"
    device_type = "cpu"
    priority = None
    thread_ranks = True

    def probe(self):
        return Probe(True, "it is a toy")

    def devices(self):
        return (Device(self.name, "cpu", 0),)

    def capabilities(self, device):
        import torch

        return Capabilities(frozenset({torch.float32, torch.int64}), {"sum": frozenset({torch.float32})})

    def open(self, group):
        return OverGloo(group)


@hookimpl
def devices_backend():
    return Toy()
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def conformance(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return site.run("-m", "devices", "conformance", *arguments)


EACH = """
import contextlib, io, json, sys
from devices.__main__ import main

told = {}
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["conformance", *arguments])
    told[" ".join(arguments)] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(told))
"""
"""One interpreter for many commands: most of what one takes is the import of torch."""

RIGHT = "cpu --ranks threads --only probe.*"
ONLY_SKIPPED = "cpu --ranks threads --only order.streams"
ON_THREADS = "toy --ranks threads"
NOT_THERE = {"cpuu": "did you mean 'cpu'?", "cpu --only verbs.all_redcue": "did you mean 'verbs.all_reduce'?"}
NOT_TO_BE_LOOKED_AT = {
    "mute": (
        ("def probe(self):", "def probe(self):\n        raise OSError('no toys')\n"),
        "its probe raised OSError: no toys",
    ),
    "blind": (
        ("def capabilities(self, device):", "def capabilities(self, device):\n        raise OSError('no toys')\n"),
        "listing its devices and capabilities raised OSError: no toys",
    ),
    "absent": (
        ('Probe(True, "it is a toy")', 'Probe(False, "the box is shut")'),
        "not available here: the box is shut",
    ),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What each of some commands ended with and printed to its two streams."""
    site, toy = Site(tmp_path_factory.mktemp("site")), PREAMBLE + GOOD_HOOK
    site.add("toy", toy)
    for name, (change, _) in NOT_TO_BE_LOOKED_AT.items():
        site.add(name, toy.replace('name = "toy"', f'name = "{name}"').replace(*change))
    commands = [RIGHT, ONLY_SKIPPED, ON_THREADS, *NOT_THERE, *NOT_TO_BE_LOOKED_AT]
    done = site.run("-c", EACH, json.dumps([command.split() for command in commands]))
    assert done.returncode == 0, done.stderr
    return {command: tuple(said) for command, said in json.loads(done.stdout).items()}


def test_a_backend_that_is_right_is_proved(told: dict[str, tuple[int, str, str]]) -> None:
    status, out, err = told[RIGHT]
    assert status == 0, err
    assert re.search(r"probe\.quick +1\n", out)
    assert "they stand for the backend's own" in " ".join(out.split())
    assert "proved: 4 checks, 4 things proved" in out


def test_the_same_as_a_module_of_testing(site: Site) -> None:
    done = site.run("-m", "devices.testing", "cpu", "--only", "devices.own", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["proved"] is True
    assert [(check["name"], check["proved"]) for check in said["checks"]] == [("devices.own", 1)]


def as_a_program(path: Path) -> None:
    runpy.run_path(str(path), run_name="__main__")


def test_what_is_wrong_is_shown_by_a_program_that_fails_by_itself(site: Site, tmp_path: Path) -> None:
    site.add("toy", BROADCASTS_FROM_THE_FIRST)
    done = conformance(site, "toy", "--only", "verbs.broadcast", "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["own"] == ["exchange", "broadcast"]
    assert said["unused"] == ["all_reduce of sum", "reduce of sum", "reduce_scatter of sum"]
    [check] = said["checks"]
    failure = check["failed"][0]
    assert "broadcast on" in failure["what"]
    program = tmp_path / "program.py"
    program.write_text(failure["program"])
    assert len(failure["program"].splitlines()) < 40
    alone = site.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program))
    assert alone.returncode == 1
    assert re.search(r"AssertionError: rank \d, flat element \d+: found", alone.stderr)
    program.write_text(failure["program"].replace("'toy'", "'cpu'"))
    ranks.run(2, as_a_program, program)


def test_a_table_shows_what_is_wrong(site: Site) -> None:
    site.add("toy", BROADCASTS_FROM_THE_FIRST)
    done = conformance(site, "toy", "--only", "verbs.broadcast")
    assert done.returncode == 1, done.stderr
    shown = done.stdout.partition("# torchrun --nproc-per-node=2 program.py")[2].partition("\nVerdict")[0]
    compile(shown, "program.py", "exec")
    assert "not proved: 1 of 1 checks" in done.stdout
    assert "FAILED  verbs.broadcast" in done.stderr


@pytest.mark.parametrize("name", NOT_TO_BE_LOOKED_AT)
def test_a_backend_that_cannot_be_looked_at_is_named_with_its_cause(
    name: str, told: dict[str, tuple[int, str, str]]
) -> None:
    status, out, err = told[name]
    assert status == 2
    assert out == ""
    assert f"backend {name!r}" in err
    assert NOT_TO_BE_LOOKED_AT[name][1] in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", NOT_THERE)
def test_what_there_is_not_is_said_with_what_was_meant(command: str, told: dict[str, tuple[int, str, str]]) -> None:
    status, _, err = told[command]
    assert status == 2
    assert NOT_THERE[command] in err
    assert "Traceback" not in err


def test_what_was_only_skipped_is_not_called_proved(told: dict[str, tuple[int, str, str]]) -> None:
    status, out, err = told[ONLY_SKIPPED]
    assert status == 2, err
    assert "nothing was looked at" in out


def test_threads_are_refused_where_the_backend_does_not_say_that_it_can(told: dict[str, tuple[int, str, str]]) -> None:
    status, _, err = told[ON_THREADS]
    assert status == 2
    assert "Backend.thread_ranks" in err


def test_the_kit_imports_nothing_of_pytest(site: Site) -> None:
    code = (
        "import sys, devices.testing.conformance as kit\n"
        "assert kit.conform('cpu', only='backend.*').is_proved\n"
        "print([name for name in sys.modules if name.startswith(('pytest', '_pytest'))])"
    )
    assert site.python(code) == "[]"


def test_an_authors_test_file_is_three_lines_and_skips_what_is_not_here(site: Site) -> None:
    site.add("toy", (PREAMBLE + GOOD_HOOK).replace('Probe(True, "it is a toy")', 'Probe(False, "the box is shut")'))
    (site.folder / "test_toy.py").write_text(
        "from devices.testing.conformance import Conformance\n\n"
        'class TestCPU(Conformance):\n    backend = "cpu"\n\n'
        'class TestToy(Conformance):\n    backend = "toy"\n'
    )
    done = site.run(
        "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", "probe or devices.order", "test_toy.py"
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed, 5 skipped" in done.stdout
    assert "backend 'toy' is not here: the box is shut" in done.stdout
