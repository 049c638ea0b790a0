#!/usr/bin/env bash
# One stage on all GPUs of this machine: the arguments of `rebus train`. A process that dies takes the others with it, and
# all start again from the last checkpoint, three times.
#
#   runs/cluster/one_node.sh seed.stage3_pretrain --config paper --parallel fsdp --recompute …
#   PROCESSES=2 runs/cluster/one_node.sh … --device cpu        # the same on processors
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

exec "$python" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
  -m rebus.apps.cli train "$@"
