"""What has not run on hardware says so: by the ids of its tests, by its backend, and in the README's table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import devices
from devices import _registry

TESTS = Path(__file__).parents[1]
OF_HARDWARE = {
    "devices_cuda", "cuda_stand_in", "cuda_runtime_stand_in",
    "devices_neuron", "laid_out", "neuron_cases", "on_standin",
}  # fmt: skip
"""The packages of plugins for hardware, and what stands for that hardware in tests."""

WORDS = ("not_run_on_hardware", "the_standin", "on_a_gpu")

OVER_RECORDS = {"test_cuda_topo.py", "test_cuda_record.py"}
"""Over the output of real machines' tools, as others have published it, and over files of a format of our own."""


def ids_of(path: Path) -> list[str]:
    """Return the ids of the tests in a file that have to do with hardware, themselves or by functions of that file."""
    body = ast.parse(path.read_text()).body
    concerned: set[str] = set()
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OF_HARDWARE:
            concerned |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Import):
            names = [name for name in node.names if name.name.partition(".")[0] in OF_HARDWARE]
            concerned |= {name.asname or name.name.partition(".")[0] for name in names}
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    before = -1
    while len(concerned) > before:
        before = len(concerned)
        concerned |= {function.name for function in functions if names_in(function) & concerned}
    return [
        f"{path.relative_to(TESTS)}::{function.name}"
        for function in functions
        if function.name in concerned and function.name.startswith(("test_", "Test"))
    ]


def names_in(function: ast.AST) -> set[str]:
    """Return the names that a function or class uses, fixtures that it takes included."""
    found = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return found | {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}


def test_the_id_of_each_test_of_a_plugin_for_hardware_says_where_it_did_not_run() -> None:
    told = [name for path in TESTS.rglob("test_*.py") if path.name not in OVER_RECORDS for name in ids_of(path)]
    # Those of both plugins, and those over the stand-in that lie elsewhere.
    assert len(told) > 200
    assert [name for name in told if not any(word in name for word in WORDS)] == []


@pytest.mark.parametrize("name", ["cuda", "neuron"])
def test_the_backend_and_the_readme_say_that_it_has_not_run_on_hardware(name: str) -> None:
    assert _registry.facts(name).verified.startswith("not run on hardware")
    readme = (TESTS.parent / "README.md").read_text().splitlines()
    (row,) = [line for line in readme if line.startswith(f"| `{name}` | ") and line.count(" | ") == 3]
    assert row.rpartition(" | ")[2].startswith("not run on hardware")
    assert name in devices.backends()
