"""`make gpu`: what it says where there is no GPU, and how its parts end. On a GPU it has not run."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tests" / "judge" / "on_a_gpu.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU, found one")
def test_without_a_gpu_it_says_what_is_missing_and_fails(tmp_path: Path) -> None:
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'results'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2
    missing = "built without CUDA" if torch.version.cuda is None else "no NVIDIA GPU that torch can use"
    assert f"nothing was run: {'this torch was' if torch.version.cuda is None else 'there is'} {missing}" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_package_that_is_missing_is_named(script: dict[str, Any]) -> None:
    assert script["missing"]({"json": "json", "no_such_module": "no-such-package"}) == ["no-such-package"]


@pytest.mark.parametrize(
    ("code", "seconds", "said", "why"),
    [
        ("print('here')", 60, "passed", ""),
        ("raise SystemExit(3)", 60, "failed", "exit status 3; see log.txt"),
        ("print('here', flush=True); import time; time.sleep(600)", 2, "late", "it was not done in 2 s; see log.txt"),
        ("print('here')", -1, "not run", "no time is left"),
    ],
    ids=["passes", "fails", "hangs", "has no time"],
)
def test_a_part_ends_and_says_how(
    script: dict[str, Any], code: str, seconds: float, said: str, why: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-S", "-c", code]
    part = script["Part"]("one", seconds, [(command, {})], {})
    outcome = script["run"](part, tmp_path / "log.txt", {})
    assert (outcome.said, outcome.why) == (said, why)
    if said == "passed":
        assert (tmp_path / "log.txt").read_text() == "here\n"


HOLDS = """
import fcntl, subprocess, sys
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
started = subprocess.Popen(["sleep", "600"], pass_fds=[held.fileno()])
print("holds", flush=True)
"""
"""Starts a process that holds a file's lock for as long as it runs."""

STARTS = """
import runpy, sys
script = runpy.run_path(sys.argv[1])
part = script["Part"]("one", 100, [([sys.executable, "-c", sys.argv[2] + "started.wait()", sys.argv[3]], {})], {})
script["main"].__globals__.update(why_not=lambda: "", parts=lambda folder: [part])
sys.exit(script["main"]([sys.argv[4]]))
"""
"""Runs a part that does not end."""


def until_free(file: Path) -> None:
    with file.open("w") as held:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_a_part_has_started_ends_with_it(script: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS + "raise SystemExit(1)", str(tmp_path / "held")]
    part = script["Part"]("one", 60, [(command, {})], {})
    outcome = script["run"](part, tmp_path / "log.txt", dict(os.environ))
    assert (outcome.said, (tmp_path / "log.txt").read_text()) == ("failed", "holds\n")
    until_free(tmp_path / "held")


def test_what_runs_ends_where_the_whole_is_ended(tmp_path: Path) -> None:
    file, log = tmp_path / "held", tmp_path / "results" / "1-one.txt"
    command = [sys.executable, "-c", STARTS, ROOT / "tests" / "judge" / "on_a_gpu.py", HOLDS, file, log.parent]
    judge = subprocess.Popen(list(map(str, command)))
    try:
        deadline = time.monotonic() + 60
        while not log.exists() or log.read_text() != "holds\n":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        judge.terminate()
        assert judge.wait(60) == 128 + signal.SIGTERM
    finally:
        judge.kill()
    until_free(file)


def test_a_part_of_which_one_fails_does_not_wait_for_its_others(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script["run"].__globals__, "PEERS", 0.0)
    codes = ["raise SystemExit(3)", "import time; time.sleep(600)"]
    part = script["Part"]("two", 100, [([sys.executable, "-S", "-c", code], {}) for code in codes], {})
    outcome = script["run"](part, tmp_path / "log.txt", {})
    assert (outcome.said, outcome.why) == ("failed", "exit status 3, -15; see log.txt")


def test_every_part_is_of_files_that_are_there(script: dict[str, Any], tmp_path: Path) -> None:
    parts = list(script["parts"](tmp_path))
    words = [word for part in parts for command, _ in part.commands for word in command]
    files = [word for word in words if word.endswith(".py")]
    assert len(files) > 8
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert len({part.name for part in parts}) == len(parts)


def test_where_it_is_not_installed_its_plugins_are_found_by_entry_points(
    script: dict[str, Any], tmp_path: Path
) -> None:
    script["installed"](tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    told = {entry.name: entry.value for entry in found.entry_points if entry.group == "devices"}
    assert told["cuda"] == "devices_cuda"
    assert found.metadata["Name"] == "devices"


def test_the_mixed_parts_have_ranks_of_the_backends_that_they_name(script: dict[str, Any], tmp_path: Path) -> None:
    mixed = [part for part in script["parts"](tmp_path) if part.name.startswith("mixed")]
    backends = [[told["DEVICES_BACKEND"] for _, told in part.commands] for part in mixed]
    assert backends == [["cuda", "cpu", "cpu"], ["cuda", "cuda", "cpu"]]
    assert [[told["RANK"] for _, told in part.commands] for part in mixed] == [["0", "1", "2"]] * 2
