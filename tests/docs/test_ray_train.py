"""docs/ray_train.py, for real, where Ray is installed."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from doc_blocks import ROOT, blocks, environment_of, run

pytestmark = pytest.mark.slow


def test_the_workers_fit_the_line_together(tmp_path: Path) -> None:
    if find_spec("ray") is None or find_spec("ray.train") is None:
        pytest.skip('needs the package "ray[train]", which is not installed')
    [block] = [block for block in blocks(ROOT / "README.md") if "docs/ray_train.py" in block.text]
    # Ray reports its use to its makers, and writes to the home folder, unless told otherwise. Its sockets are in its
    # temporary folder, whose name must be short.
    with TemporaryDirectory() as folder:
        ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "HOME": folder, "RAY_COLOR_PREFIX": "0"}
        printed = run(["bash", "-euc", block.text], ROOT, environment_of(tmp_path) | ray)
    [result] = [ast.literal_eval(found) for found in re.findall(r"\) (\{'slope'.*\})", printed)]
    assert result["ranks"] == 2
    assert result["slope"] == pytest.approx(3, abs=1e-4)
    assert result["intercept"] == pytest.approx(-1, abs=1e-4)
