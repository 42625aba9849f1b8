#!/bin/bash
# Two nodes under Slurm: sbatch examples/cluster/slurm.sh fashion_mnist/mlp --global-batch 1024
# Slurm starts one torchrun a node, torchrun the workers, and bigbatch reads no more than torchrun's environment. Before the time limit each
# worker saves (SIGTERM); submitted again with the same RUN, the run goes on from there. RUN is a folder that all nodes share.
#SBATCH --job-name=bigbatch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
RUN=${RUN:-runs/slurm}
WORKERS=${WORKERS:-${SLURM_GPUS_ON_NODE:-1}}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
RESUME=()
[ -e "$RUN/recipe.toml" ] && RESUME=(--resume)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-1} / WORKERS > 0 ? ${SLURM_CPUS_PER_TASK:-1} / WORKERS : 1))}
exec srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$WORKERS" --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$FIRST:${PORT:-29500}" -m bigbatch train "$@" --out "$RUN" "${RESUME[@]}"
