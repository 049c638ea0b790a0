#!/usr/bin/env bash
# One stage on several machines, started by hand on each of them with the same arguments; all see the same folders.
#
#   HEAD=node-0:29400 NODES=4 runs/cluster/several_nodes.sh seed.stage3_pretrain --config paper --parallel fsdp …
#
# HEAD is one of the machines, with a free port; RUN names the run where several share a head. When a machine fails, the
# others wait for it to come back (start this on it, or on another in its place) and go on from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

exec "$python" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${RUN:-rebus}" \
  -m rebus.apps.cli train "$@"
