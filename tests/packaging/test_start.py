from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROUNDS = 7


def seconds(*arguments: str) -> float:
    """Return the median processor time of the interpreter with `arguments`, modules compiled beforehand.

    Neither waits for anything, so on an idle machine this is the time that passes; on a busy one, where other
    tests run, it still is what the program itself costs.
    """
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return statistics.median(processor_time(command) for _ in range(ROUNDS))


def processor_time(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_importing_devices_takes_under_100_ms() -> None:
    assert seconds("-c", "import devices") - seconds("-c", "pass") < 0.100


def test_help_answers_within_300_ms() -> None:
    assert seconds("-m", "devices", "doctor", "--help") < 0.300


def loaded(code: str) -> set[str]:
    """Return the modules that are loaded after `code`, of those that are slow."""
    slow = "{'torch', 'numpy', 'rich', 'pluggy', 'importlib.metadata', 'argparse'}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; before = set(sys.modules); {code}; print(*{slow} & (set(sys.modules) - before))",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.splitlines()[-1].split()) if done.stdout else set()


def test_importing_devices_brings_in_nothing_slow() -> None:
    assert loaded("import devices") == set()


def test_help_brings_in_argparse_alone() -> None:
    code = "import devices.__main__ as command; command._parsers()[0].format_help()"
    assert loaded(code) == {"argparse"}


@pytest.mark.slow
def test_neither_import_order_nor_none_keeps_torch_from_knowing_the_group() -> None:
    names = "import torch.distributed as dist; print(hasattr(dist.Backend, 'DEVICES'))"
    for code in (names, f"import devices; {names}", f"import torch; import devices; {names}"):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "True\n", code


def test_torch_imports_when_registering_with_it_fails() -> None:
    code = (
        "import devices._autoload as autoload; autoload._register = lambda: 1 / 0; import torch; "
        "print(repr(autoload.error), torch.ones(1).item())"
    )
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "ZeroDivisionError('division by zero') 1.0\n"


def test_registering_leaves_torchs_defaults_as_they_were() -> None:
    """A vendor whose device type we had claimed could no longer make its own group that type's default."""
    code = "import torch.distributed as dist; print(sorted(dist.Backend.default_device_backend_map.items()))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload},
        ).stdout
        for autoload in "01"
    ]
    assert told[0] == told[1]


def test_registering_twice_keeps_the_first_creator() -> None:
    code = (
        "import torch.distributed as dist, devices._autoload as autoload; first = dist.Backend._plugins['DEVICES']; "
        "autoload.register(); print(dist.Backend._plugins['DEVICES'] is first, autoload.error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True None\n"
