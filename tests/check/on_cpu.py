"""Run a program that was written for NVIDIA GPUs on CPU ranks, once what binds it there is replaced as findings say."""

from __future__ import annotations

import ast
import contextlib
import io
import runpy
import sys
import time
import types
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ranks
import torch

from devices.testing._portability import Finding, find

PROGRAMS = Path(__file__).parent / "programs"

# What a CPU has not, whatever the program is written in: an answer that fits where the program asks.
_NOT_ON_A_CPU = {
    "Event": "Clock()",
    "device_count": "1",
    "get_device_name": "'CPU'",
    "get_device_properties": "Properties",
    "is_available": "True",
    "is_bf16_supported": "True",
    "max_memory_allocated": "0",
    "max_memory_reserved": "0",
    "mem_get_info": "(0, 0)",
    "memory_allocated": "0",
    "reset_peak_memory_stats": "None",
    "empty_cache": "None",
}


class Clock:
    """An event that measures time by the host's clock."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Clock) -> float:
        return (end.at - self.at) * 1000


class Properties:
    name, total_memory = "CPU", 0


def port(path: Path) -> str:
    """Return the source of a program with the replacement of each finding in its place."""
    lines = path.read_text(encoding="utf-8").split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    source = "\n".join(lines)
    edits = [(starts[each.line - 1] + each.column - 1, each.code, _written(each)) for each in find(path)]
    done, ported = 0, ""
    for start, code, new in edits:
        if new is not None and start >= done:  # what lies in a part that was replaced went with it
            assert source.startswith(code, start), f"{path}: {code!r} is not where it was found"
            ported, done = ported + source[done:start] + new, start + len(code)
    return ported + source[done:]


def _written(finding: Finding) -> str | None:
    """Return what stands in the place of what was found; None where it may stay, for a CPU does not read it."""
    match finding.kind:
        case "device-ids":
            return "**{}"
        case "environment" | "torch-backends":
            return None
        case "device-module":
            return None if "import" in finding.code else _call(finding)
        case _:
            return finding.replacement


def _call(finding: Finding) -> str:
    """Return the replacement's expression with the arguments of the call that was found."""
    call = ast.parse(finding.code, mode="eval").body
    assert isinstance(call, ast.Call)
    last = ast.unparse(call.func).rpartition(".")[2]
    if last in _NOT_ON_A_CPU:
        return _NOT_ON_A_CPU[last]
    if finding.replacement.startswith("nothing to write"):
        return "None"
    if finding.replacement == "world.device":
        return finding.replacement
    new = ast.parse(finding.replacement.partition(",")[0].partition(";")[0], mode="eval").body
    if isinstance(new, ast.Call):
        return ast.unparse(ast.Call(new.func, [*new.args, *call.args], [*new.keywords, *call.keywords]))
    return ast.unparse(ast.Call(new, call.args, call.keywords))


def run(program: str, *arguments: str, on: int, folder: Path) -> list[str]:
    """Return what each of `on` ranks printed."""
    path = folder / f"on_{on}_{program}.py"
    path.write_text(port(PROGRAMS / f"{program}.py"), encoding="utf-8")
    return ranks.run(on, _main, str(path), arguments)


def _main(path: str, arguments: Iterable[str]) -> str:
    sys.argv = [path, *arguments]
    printed = io.StringIO()
    warnings.filterwarnings("ignore", "'pin_memory'")  # which a CPU has no use for
    with contextlib.redirect_stdout(printed):
        load(path, "__main__")
    return printed.getvalue()


def load(path: str, name: str) -> Mapping[str, Any]:
    """Return the globals of a ported program, run as a module of that name."""
    world = types.SimpleNamespace(device=torch.device("cpu"))
    return runpy.run_path(path, {"world": world, "Clock": Clock, "Properties": Properties}, name)
