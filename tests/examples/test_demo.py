from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples_on_ranks import EXAMPLES, finish, start


@pytest.mark.slow
def test_the_demo_compares_one_rank_with_four(tmp_path: Path) -> None:
    tiny = ("--steps=3", "--batch=6", "--context=16", "--layers=1", "--width=16", "--sample=8")
    printed = finish(start(EXAMPLES / "demo.py", "--out", str(tmp_path), *tiny), timeout=500)
    assert "largest relative difference along the curves" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float], list[float]], None]:
    """Return the demo's main(), with two given curves in place of trainings."""

    def main(*curves: list[float]) -> None:
        demo = runpy.run_path(str(EXAMPLES / "demo.py"))
        results = iter([{"losses": losses, "held_out": 1.0, "sample": ""} for losses in curves])
        monkeypatch.setitem(demo["main"].__globals__, "run", lambda *args, **variables: next(results))
        monkeypatch.setattr("sys.argv", ["demo.py", "--out", str(tmp_path)])
        demo["main"]()

    return main


def test_the_demo_accepts_the_differences_of_rounding(compare: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compare([5.0, 4.0], [5.0, 4.0 * (1 + 9e-4)])
    assert "9.0e-04" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [4.0 * (1 + 1.1e-3), float("nan")])
def test_the_demo_fails_where_the_curves_part(compare: Any, wrong: float) -> None:
    with pytest.raises(SystemExit, match="FAILED: the two curves part at step 2"):
        compare([5.0, 4.0, 3.0], [5.0, wrong, 3.0])
