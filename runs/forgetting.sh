#!/usr/bin/env bash
# A run that is made to forget, and the gate that stops it: seed:mini's language model is taught at fifty times its rate.
# Every two steps captions, drawings and plain text are asked; the run ends with the last good weights and exit code 2.
# Needs the embedded data (`rebus data emoji -o state/emoji`) and the stages of seed:mini (`runs/seed_mini.sh`, or
# `rebus unpack seed:mini --work state`). Some minutes on two cores.
set -uo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
work=${1:-state}
out=${2:-$work/forgetting}

"$rebus" train seed.stage4_instruct --config mini --work "$work" --out "$out" \
    --lr 0.04 --row-lr 0.05 --optim.warmup 0 --optim.schedule constant --steps 12 \
    --gates.every 2 --log-every 1
echo "exit code $?"
grep gate/ "$out/log.jsonl"
