#!/bin/bash
# One torchrun on each node, which starts the ranks there. What follows this file's name is the program:
#
#     sbatch docs/slurm.sh examples/train_gpt.py --tp 2
#
#SBATCH --job-name=devices
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=00:30:00

set -euo pipefail

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Another job may have its meeting point on the same node.
port=$((20000 + SLURM_JOB_ID % 10000))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${RANKS_PER_NODE:-2}" --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \
    "$@"
