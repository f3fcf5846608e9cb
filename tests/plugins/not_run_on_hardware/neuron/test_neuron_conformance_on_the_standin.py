"""Laws of the conformance kit on the Neuron plugin over the stand-in; `devices conformance neuron` looks at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from on_standin import STANDIN, variables

pytestmark = pytest.mark.slow


def conformance(folder: Path, only: str) -> dict[str, dict[str, Any]]:
    """Run the kit in a process of its own, where torch loads the stand-in by its entry point."""
    environment = {**os.environ, **variables(folder), "PYTHONPATH": str(STANDIN)}
    command = [sys.executable, "-m", "devices.testing", "neuron", "--json", "--only", only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode in (0, 1), done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_laws_of_order_hold_on_the_standin(tmp_path: Path) -> None:
    checks = conformance(tmp_path, "order.[!fgst]*")
    assert len(checks) > 10
    for name, check in checks.items():
        assert check["failed"] == [], name
        assert check["refused"] == [], name
        assert check["proved"], name
