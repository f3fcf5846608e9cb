"""`devices conformance NAME`, in fresh interpreters with plugins of their own."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
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


def test_a_backend_that_is_right_is_proved(site: Site) -> None:
    done = conformance(site, "cpu", "--ranks", "threads", "--only", "probe.*")
    assert done.returncode == 0, done.stderr
    assert re.search(r"probe\.quick +1\n", done.stdout)
    assert "they stand for the backend's own" in " ".join(done.stdout.split())
    assert "proved: 4 checks, 4 things proved" in done.stdout


def test_the_same_as_a_module_of_testing(site: Site) -> None:
    done = site.run("-m", "devices.testing", "cpu", "--only", "devices.own", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["proved"] is True
    assert [(check["name"], check["proved"]) for check in said["checks"]] == [("devices.own", 1)]


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
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    alone = site.run(*launch)
    assert alone.returncode == 1
    assert re.search(r"AssertionError: rank \d, flat element \d+: found", alone.stderr)
    program.write_text(failure["program"].replace("'toy'", "'cpu'"))
    assert site.run(*launch).returncode == 0


def test_a_table_shows_what_is_wrong(site: Site) -> None:
    site.add("toy", BROADCASTS_FROM_THE_FIRST)
    done = conformance(site, "toy", "--only", "verbs.broadcast")
    assert done.returncode == 1, done.stderr
    shown = done.stdout.partition("# torchrun --nproc-per-node=2 program.py")[2].partition("\nVerdict")[0]
    compile(shown, "program.py", "exec")
    assert "not proved: 1 of 1 checks" in done.stdout
    assert "FAILED  verbs.broadcast" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("def probe(self):", "def probe(self):\n        raise OSError('no toys')\n"),
            "its probe raised OSError: no toys",
        ),
        (
            ("def capabilities(self, device):", "def capabilities(self, device):\n        raise OSError('no toys')\n"),
            "listing its devices and capabilities raised OSError: no toys",
        ),
        (('Probe(True, "it is a toy")', 'Probe(False, "the box is shut")'), "not available here: the box is shut"),
    ],
    ids=["probe", "capabilities", "absent"],
)
def test_a_backend_that_cannot_be_looked_at_is_named_with_its_cause(
    site: Site, change: tuple[str, str], said: str
) -> None:
    site.add("toy", (PREAMBLE + GOOD_HOOK).replace(*change))
    done = conformance(site, "toy")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "backend 'toy'" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_there_is_not_is_said_with_what_was_meant(site: Site) -> None:
    for arguments, said in (
        (("cpuu",), "did you mean 'cpu'?"),
        (("cpu", "--only", "verbs.all_redcue"), "did you mean 'verbs.all_reduce'?"),
    ):
        done = conformance(site, *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_what_was_only_skipped_is_not_called_proved(site: Site) -> None:
    done = conformance(site, "cpu", "--ranks", "threads", "--only", "order.streams")
    assert done.returncode == 2, done.stderr
    assert "nothing was looked at" in done.stdout


def test_threads_are_refused_where_the_backend_does_not_say_that_it_can(site: Site) -> None:
    site.add("toy", PREAMBLE + GOOD_HOOK)
    done = conformance(site, "toy", "--ranks", "threads")
    assert done.returncode == 2
    assert "Backend.thread_ranks" in done.stderr


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
