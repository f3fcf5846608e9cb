"""The README's commands for several hosts, run on two: each command as it stands there, on its host."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks
from doc_blocks import ROOT, Block, blocks
from network import ADDRESSES, TwoHosts, missing

pytestmark = pytest.mark.slow

SMALL = [
    "--steps",
    "6",
    "--layers",
    "1",
    "--width",
    "32",
    "--heads",
    "2",
    "--context",
    "32",
    "--batch",
    "8",
    "--sample",
    "4",
    "--save-every",
    "1",
    "--dtype",
    "float64",
]
NAMED = tuple(f"{ADDRESSES[0]} host-a\n{ADDRESSES[1]} host-b\n" for _ in range(2))
# As Debian's installer writes it: the host's own name leads to an address that is nobody else's.
OWN_LOOPBACK = ("127.0.1.1 host-a\n", "127.0.1.1 host-b\n")


@pytest.fixture(autouse=True)
def _two_hosts_can_be_made() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A shell's variables, `torchrun` being that of the Python which runs the tests."""
    (tmp_path / "bin").mkdir()
    torchrun = tmp_path / "bin" / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO_", "MASTER_", "RANK"))}
    return {**inherited, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def commands() -> list[Block]:
    return [block for block in blocks(ROOT / "README.md") if "--nnodes" in block.text]


def rank_processes(hosts: TwoHosts, at: int) -> Iterator[tuple[int, int]]:
    """Return (rank, process id) of the ranks on a host."""
    for process_id in hosts.processes_on(at):
        try:
            variables = Path(f"/proc/{process_id}/environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if found := [variable for variable in variables if variable.startswith("RANK=")]:
            yield int(found[0].removeprefix("RANK=")), process_id


def _train(out: Path) -> None:
    sys.argv = ["train_gpt.py", "--tp", "2", *SMALL, "--out", str(out)]
    runpy.run_path(str(ROOT / "examples" / "train_gpt.py"), run_name="__main__")


def test_training_on_two_hosts_with_a_rank_that_dies_gives_the_losses_of_one_host(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = commands()[0].text.strip()
    with TwoHosts(("host-a", "host-b"), NAMED, tmp_path) as hosts:
        for at in (0, 1):
            script = f"{command} {' '.join(SMALL)} --out {tmp_path / f'out-{at}'}"
            hosts.start(at, ["bash", "-euc", script], ROOT, environment)
        saved = tmp_path / "mnt" / "run-1"
        deadline = time.monotonic() + 100
        while not list(saved.glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        victims = dict(rank_processes(hosts, 1))
        os.kill(victims[max(victims)], signal.SIGKILL)
        hosts.finish(150)
    assert len(victims) == 2
    two = json.loads((tmp_path / "out-0" / "losses.json").read_text())
    assert not (tmp_path / "out-1").exists(), "rank 0, which writes, is on the first host"

    ranks.run(4, _train, tmp_path / "one")
    one = json.loads((tmp_path / "one" / "losses.json").read_text())
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-12)
    assert two["sample"] == one["sample"]


def test_hosts_whose_own_names_lead_nowhere_meet_as_the_readme_says(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with TwoHosts(("host-a", "host-b"), OWN_LOOPBACK, tmp_path) as hosts:
        for at, block in enumerate(commands()[1:]):
            hosts.start(at, ["bash", "-euc", block.text], ROOT, environment)
        first, second = hosts.finish(100)
    assert "rank 0 of 4 on cpu: 4 ranks met at 198.51.100.1:" in first
    assert "4 rank(s), mesh {'dp': 2, 'tp': 2}" in first
    assert "ranks, averaged                                [1.5]                    as expected" in first
    assert "as expected" not in second
