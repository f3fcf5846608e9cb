"""torch knows the process group "devices", whatever is imported, in whatever order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# A world of one by torch's own call, and one verb over it.
OPEN = """
import torch.distributed as dist
dist.init_process_group("devices", store=dist.HashStore(), rank=0, world_size=1)
tensor = torch.ones(2)
dist.all_reduce(tensor)
print(dist.get_backend(), tensor.tolist())
"""


def python(program: str, warnings: str = "error", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a fresh interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", program],
        env=environment | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("autoload", ["1", "0"])
@pytest.mark.parametrize("imports", ["import torch, devices", "import devices, torch"])
def test_the_group_opens_in_either_import_order_with_autoload_on_and_off(imports: str, autoload: str) -> None:
    ran = python(imports + OPEN, TORCH_DEVICE_BACKEND_AUTOLOAD=autoload)
    assert (ran.stdout, ran.stderr) == ("devices [1.0, 1.0]\n", "")


def test_the_group_opens_with_no_import_of_ours() -> None:
    ran = python("import torch" + OPEN)
    assert (ran.stdout, ran.stderr) == ("devices [1.0, 1.0]\n", "")


def test_with_autoload_off_and_no_import_torch_says_that_it_does_not_know_the_group() -> None:
    # Nothing of ours runs, so the error is torch's; what to do about it is to `import devices`, as above.
    ran = python("import torch" + OPEN, warnings="ignore", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert ran.returncode == 1
    assert "AssertionError: Unknown backend type devices" in ran.stderr


def test_registering_imports_nothing_heavy_and_leaves_the_default_of_each_device_type_alone() -> None:
    program = """
import sys, os
import torch
before = set(sys.modules)
defaults = dict(torch.distributed.Backend.default_device_backend_map)
import devices
assert "DEVICES" in dir(torch.distributed.Backend)
assert torch.distributed.Backend.default_device_backend_map == defaults
print(sorted(name for name in set(sys.modules) - before if not name.startswith("devices")))
print(defaults.get("cpu"), defaults.get("cuda"), "devices" in defaults.values())
print("devices.c10d.group" in sys.modules, "pluggy" in sys.modules)
"""
    ran = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert ran.stdout == "[]\ngloo nccl False\nFalse False\n", ran.stderr


def test_an_entry_point_that_fails_leaves_torch_importable_and_keeps_its_error() -> None:
    # A torch that refuses us is made by a module that breaks its register_backend once torch.distributed is there.
    program = """
import builtins
original = builtins.__import__
def spoiling(name, *args, **kwargs):
    module = original(name, *args, **kwargs)
    if name == "torch.distributed" and args and (args[0] or {}).get("__name__") == "devices._autoload":
        def refuse(*args, **kwargs):
            raise RuntimeError("another torch")
        module.distributed.Backend.register_backend = refuse
    return module
builtins.__import__ = spoiling
import torch
import devices._autoload
print(torch.ones(1).item(), devices._autoload.error)
"""
    ran = python(program)
    assert (ran.stdout, ran.stderr) == ("1.0 another torch\n", "")
