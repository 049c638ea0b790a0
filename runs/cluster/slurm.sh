#!/usr/bin/env bash
#SBATCH --job-name=rebus
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
# A script of this folder, or one stage, on the machines that Slurm gives:
#
#   sbatch --nodes 8 runs/cluster/slurm.sh runs/cluster/seed.sh FILES PAIRS SETS WORK
#   sbatch --nodes 1 runs/cluster/slurm.sh seed.stage1_qformer --config paper …
#
# Two minutes before the time is over every process is asked to stop, and saves; submitted again, the run goes on. A run
# that a failing machine ended is queued again by itself.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"

export NODES=$SLURM_NNODES
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))
export RUN=$SLURM_JOB_ID
export GPUS=$((NODES * ${SLURM_GPUS_ON_NODE:-8}))
export LAUNCH="srun --kill-on-bad-exit=1 runs/cluster/several_nodes.sh"

case $1 in
  *.sh) exec "$@" ;;
  *) exec $LAUNCH "$@" ;;
esac
