"""docs/slurm.sh as the README submits it. Slurm itself is not here: its commands are stood in for.

`sbatch`, `srun` and `scontrol` are small scripts that do what Slurm documents for such a job: `sbatch` runs the
script with the variables of an allocation of as many nodes as the script's own #SBATCH lines ask for, `srun` starts
one task for each node, and `scontrol show hostnames` lists the nodes. All nodes are this machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks, environment_of, run

pytestmark = pytest.mark.slow

SBATCH = """#!/bin/bash
set -eu
nodes=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
export SLURM_JOB_ID=4711 SLURM_JOB_NUM_NODES=$nodes SLURM_NTASKS=$((nodes * tasks)) SLURM_NTASKS_PER_NODE=$tasks
export SLURM_JOB_NODELIST="localhost*$nodes"
exec bash "$@"
"""

SCONTROL = """#!/bin/bash
set -eu
[[ "$1 $2 $3" == "show hostnames $SLURM_JOB_NODELIST" ]]
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do echo localhost; done
"""

# With --kill-on-bad-exit, the first task that fails ends the others.
SRUN = """#!/bin/bash
set -u
[[ "$1" == --kill-on-bad-exit=1 ]] || exit 2
shift
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) \\
        SLURMD_NODENAME=localhost "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do
    wait -n || { code=$?; kill "${tasks[@]}" 2>/dev/null; wait; exit "$code"; }
done
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    environment = environment_of(tmp_path)
    for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "srun": SRUN}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return environment


def test_the_job_trains_on_all_its_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    [block] = [block for block in blocks(ROOT / "README.md") if "sbatch" in block.text]
    small = "--steps 2 --layers 1 --width 32 --heads 2 --context 32 --batch 8 --sample 4"
    printed = run(["bash", "-euc", f"{block.text.strip()} {small} --out {tmp_path / 'out'}"], ROOT, environment)
    assert "dp 2 x tp 2" in printed
    assert (tmp_path / "out" / "losses.json").exists()


def test_a_program_that_fails_ends_the_job(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit('this program fails')")
    with pytest.raises(AssertionError, match="this program fails"):
        run(["sbatch", "docs/slurm.sh", str(tmp_path / "fails.py")], ROOT, environment)
