"""The same losses on any mesh, over any process group, and after any stop."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ranks
from examples_on_ranks import EXAMPLES, finish, run, start

pytestmark = pytest.mark.slow

TINY = (
    "--batch=6",
    "--context=16",
    "--layers=1",
    "--width=16",
    "--heads=4",
    "--sample=8",
    # The rounding of sums is then so small that nothing else hides behind it.
    "--dtype=float64",
)
STEPS = ("--steps=8", "--save-every=4")
ROUNDING = 1e-10


@dataclass(frozen=True)
class Run:
    losses: list[float]
    held_out: float
    sample: str
    folder: Path

    def assert_same(self, other: Run) -> None:
        assert self.losses == pytest.approx(other.losses, rel=ROUNDING)
        assert self.held_out == pytest.approx(other.held_out, rel=ROUNDING)
        assert self.sample == other.sample


def result(folder: Path) -> Run:
    return Run(**json.loads((folder / "losses.json").read_text()), folder=folder)


def train(folder: Path, *options: str, on: int) -> Run:
    run("train_gpt.py", *TINY, *STEPS, f"--out={folder}", *options, on=on)
    return result(folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("one")
    return train(folder, f"--checkpoint={folder}", on=1)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("four")
    return train(folder, f"--checkpoint={folder}", "--tp=2", on=4)


def test_the_loss_falls_from_that_of_a_guess_and_is_drawn(one: Run) -> None:
    assert one.losses[0] == pytest.approx(5.545, abs=0.2)  # log(256)
    assert sum(one.losses[4:]) < sum(one.losses[:4])
    assert (one.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_four_ranks_have_the_losses_of_one(one: Run, four: Run) -> None:
    four.assert_same(one)


@pytest.mark.slow
def test_a_gloo_process_group_gives_the_same_losses(one: Run, tmp_path: Path) -> None:
    train(tmp_path, "--tp=2", "--process-group=gloo", on=4).assert_same(one)


@pytest.mark.slow
def test_data_parallel_ranks_may_have_unequal_shares_of_a_batch(one: Run, tmp_path: Path) -> None:
    train(tmp_path, "--dp=4", on=4).assert_same(one)


def _shares(tp: int) -> dict[str, float]:
    import devices

    example = runpy.run_path(str(EXAMPLES / "train_gpt.py"))
    with devices.init() as world:
        model = example["GPT"](layers=2, width=16, heads=4)
        whole = {name: weight.numel() for name, weight in model.named_parameters()}
        devices.place(model, world.mesh({"tp": tp}), example["PLAN"])
        return {
            name: getattr(weight, "to_local", lambda w=weight: w)().numel() / whole[name]
            for name, weight in model.named_parameters()
        }


def test_a_tensor_parallel_rank_holds_its_share_of_every_matrix() -> None:
    for shares in ranks.run(2, _shares, 2):
        assert shares == {name: 1 if "norm" in name else 0.5 for name in shares}


def _marked(checkpoint: Path, folder: Path) -> Path:
    """Return a copy whose first loss is wrong, to tell a resumed run from one that starts afresh."""
    copy = shutil.copytree(checkpoint, folder / checkpoint.name)
    losses = json.loads((copy / "losses.json").read_text())
    (copy / "losses.json").write_text(json.dumps([123.0, *losses[1:]]))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(("saved_by", "options", "on"), [("four", (), 1), ("one", ("--tp=4",), 4)])
def test_another_mesh_resumes_a_checkpoint_on_the_same_curve(
    saved_by: str, options: tuple[str, ...], on: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole: Run = request.getfixturevalue(saved_by)
    checkpoint = _marked(whole.folder / "step-000004", tmp_path / "saved")
    resumed = train(tmp_path, f"--resume={checkpoint}", *options, on=on)
    assert resumed.losses[0] == 123.0
    assert resumed.losses[1:] == pytest.approx(whole.losses[1:], rel=ROUNDING)
    assert resumed.held_out == pytest.approx(whole.held_out, rel=ROUNDING)
    assert resumed.sample == whole.sample


def _crash_in_second_save(folder: str) -> list[str]:
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter

    finish_save: Any = FileSystemWriter.finish
    saves = []

    def fail_at_second(*args: Any, **kwargs: Any) -> None:
        saves.append(args)
        if len(saves) == 2:
            raise OSError("disk full")
        finish_save(*args, **kwargs)

    FileSystemWriter.finish = fail_at_second  # type: ignore[method-assign]
    sys.argv = ["train_gpt.py", *TINY, *STEPS, f"--out={folder}", f"--checkpoint={folder}"]
    with pytest.raises(CheckpointException, match="disk full"):
        runpy.run_path(str(EXAMPLES / "train_gpt.py"), run_name="__main__")
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_crash_in_a_save_leaves_the_checkpoint_before_it(one: Run, tmp_path: Path) -> None:
    assert ranks.run(1, _crash_in_second_save, str(tmp_path)) == [["step-000004", "unfinished"]]
    train(tmp_path, f"--checkpoint={tmp_path}", "--resume=auto", on=1).assert_same(one)
    assert sorted(path.name for path in tmp_path.glob("*/")) == ["step-000004", "step-000008"]


def test_only_the_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path, f"--checkpoint={tmp_path}", "--save-every=2", on=1)
    assert sorted(path.name for path in tmp_path.glob("*/")) == ["step-000006", "step-000008"]


def test_a_new_run_refuses_a_folder_that_holds_checkpoints(one: Run) -> None:
    with pytest.raises(ranks.RankFailed, match="holds checkpoints: add --resume auto, or name another folder"):
        train(one.folder, f"--checkpoint={one.folder}", on=1)


@pytest.mark.slow
def test_a_rank_killed_in_training_is_restarted_by_torchrun_and_ends_at_the_same_loss(tmp_path: Path) -> None:
    long = ("--steps=60", "--save-every=10")
    run("train_gpt.py", *TINY, *long, f"--out={tmp_path / 'whole'}", on=1)

    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, runpy\n"
        "pathlib.Path(os.environ['PIDS'], os.environ['RANK']).write_text(str(os.getpid()))\n"
        f"runpy.run_path({str(EXAMPLES / 'train_gpt.py')!r}, run_name='__main__')\n"
    )
    folder = tmp_path / "killed"
    options = (*TINY, *long, "--tp=2", f"--out={folder}", f"--checkpoint={folder}", "--resume=auto")
    torchrun = ("--nproc-per-node=2", "--max-restarts=1")
    process = start(program, *options, torchrun=torchrun, PIDS=str(tmp_path))
    deadline = time.monotonic() + 100
    while not list(folder.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed = int((tmp_path / "1").read_text())
    os.kill(killed, signal.SIGKILL)
    assert not (folder / "losses.json").exists(), "the training was over before the rank was killed"

    finish(process)
    assert int((tmp_path / "1").read_text()) != killed
    result(folder).assert_same(result(tmp_path / "whole"))
