"""The example's training, as it stands, on many thread ranks: data parallel x tensor parallel, the losses of one."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from examples_on_ranks import EXAMPLES

import devices.testing

TINY = (
    "--steps=3",
    "--batch=72",
    "--context=16",
    "--layers=1",
    "--width=16",
    "--heads=4",
    "--sample=0",
    # The rounding of sums is then so small that nothing else hides behind it.
    "--dtype=float64",
)
ROUNDING = 1e-10


@dataclass(frozen=True)
class Run:
    losses: list[float]
    held_out: float


Train = Callable[..., Run]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return what trains on that many thread ranks."""
    spec = importlib.util.spec_from_file_location("train_gpt", EXAMPLES / "train_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    # The text is the same on all ranks, which only read it: one copy will do.
    example.read_text = functools.cache(example.read_text)  # type: ignore[attr-defined]

    def on_threads(ranks: int, tp: int) -> Run:
        folder: Path = tmp_path_factory.mktemp(f"on-{ranks}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train_gpt.py", *TINY, f"--tp={tp}", f"--out={folder}"])
            options = example.parse()
        devices.testing.run(example.train, options, ranks=ranks)
        found = json.loads((folder / "losses.json").read_text())
        return Run(found["losses"], found["held_out"])

    return on_threads


@pytest.fixture(scope="module")
def one(train: Train) -> Run:
    return train(1, tp=1)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "tp"), [(8, 2), (144, 4)])
def test_many_thread_ranks_have_the_losses_of_one(train: Train, one: Run, ranks: int, tp: int) -> None:
    assert len(set(one.losses)) == 3, "each step changes the weights"
    found = train(ranks, tp=tp)
    assert found.losses == pytest.approx(one.losses, rel=ROUNDING)
    assert found.held_out == pytest.approx(one.held_out, rel=ROUNDING)
