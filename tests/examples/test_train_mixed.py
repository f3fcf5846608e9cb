"""Training on unequal ranks is that of one process: on CPUs with unequal parts, and over two vendors."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import ranks
from examples_on_ranks import EXAMPLES, finish, start

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "not_run_on_hardware" / "neuron"))
from on_standin import standin, variables

pytestmark = pytest.mark.slow

TINY = ("--batch=7", "--context=16", "--layers=1", "--width=16", "--heads=4", "--steps=4")


def train(options: tuple[str, ...], backends: tuple[str, ...] = ()) -> None:
    """Run the example on this rank."""
    if backends:
        os.environ["DEVICES_BACKEND"] = backends[int(os.environ["RANK"])]
    sys.argv = ["train_mixed.py", *TINY, *options]
    # Where Python looks first for what a script imports.
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "train_mixed.py"), run_name="__main__")


def losses(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "losses.json").read_text())
    assert len(found) == 4
    return found


def test_losses_are_those_of_one_process_however_the_batch_is_split(tmp_path: Path) -> None:
    exact = "--dtype=float64"
    ranks.run(1, train, (exact, f"--out={tmp_path / 'one'}"))
    one = losses(tmp_path / "one")
    # The last rank is too slow for a single window.
    ranks.run(3, train, (exact, "--speeds=4,2.5,0.01", f"--out={tmp_path / 'three'}"))
    assert losses(tmp_path / "three") == pytest.approx(one, rel=1e-10)
    # As a user starts it, each rank measured.
    options = (*TINY, exact, "--measure=1", f"--out={tmp_path / 'measured'}")
    printed = finish(start(EXAMPLES / "train_mixed.py", *options, torchrun=("--nproc-per-node=3",)))
    assert "windows by rank" in printed
    assert losses(tmp_path / "measured") == pytest.approx(one, rel=1e-10)


def test_losses_are_those_of_one_process_over_cpus_and_the_standin(tmp_path: Path) -> None:
    ranks.run(1, train, (f"--out={tmp_path / 'one'}",))
    with standin():
        backends = ("cpu", "neuron", "neuron")
        options = ("--speeds=1,2,4", f"--out={tmp_path / 'mixed'}")
        ranks.run(3, train, options, backends, env=variables(tmp_path))
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
