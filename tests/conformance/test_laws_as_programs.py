"""Each law as the program that is shown where it is broken: it stands by itself, and passes where all is right."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.testing._run import run_program
from devices.testing.conformance import failures, gradients, leaks, life, order, refusals, torch_programs, under_way
from devices.testing.conformance.death import program
from devices.testing.conformance.source import program_of

pytestmark = pytest.mark.slow

ARGUMENTS = {
    "gradients_of": ("all_to_all", "float64"),
    "late_peers": (3,),
    "nothing_is_left": (20,),
    "verbs_leave_nothing": (10,),
    "undeclared_dtypes": ((),),
    "ops_without_meaning": ((("band", "float32"), ("avg", "int64")),),
    "illegal_groups": ((),),
}
LAWS = {
    name: function
    for module in (order, under_way, life, failures, leaks, gradients, refusals, torch_programs)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and next(iter(inspect.signature(function).parameters), "") == "world"
}


# Every size is legal on the CPU, so that no world there is composed; and a dead peer is tried below.
@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("composed_world", "dead_peers")])
def test_a_law_is_a_program_that_passes_where_all_is_right(name: str) -> None:
    text = program_of(LAWS[name], "cpu", 4, *ARGUMENTS.get(name, ()))
    code = compile(text, "program.py", "exec")

    def as_a_rank() -> None:
        # What needs processes says so.
        with contextlib.suppress(unittest.SkipTest):
            exec(code, {"__name__": "__main__"})

    run_program(as_a_rank, ranks=4)


def fails_at_once(world: object) -> None:
    raise AssertionError("what was found")


@pytest.mark.slow
@pytest.mark.parametrize(("law", "status"), [(LAWS["dead_peers"], 0), (fails_at_once, 1)])
def test_the_program_of_a_dead_peer_starts_its_own_ranks(law: Callable[..., None], status: int, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program("cpu", law, 2))
    found = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == status, found.stderr
    assert status == 0 or "what was found" in found.stderr
