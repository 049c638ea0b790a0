#!/bin/sh
# A run that is made to forget, and the gate that stops it: seed:mini's language model is taught at fifty times its rate.
# Every two steps captions, drawings and plain text are asked; the run ends with the last good weights and exit code 2.
# Needs the embedded data (`rebus data emoji`) and the stages of seed:mini (`rebus unpack seed:mini --work state`); some
# minutes on two cores.
set -u
work=${1:-state}
out=${2:-$work/forgetting}
rebus train seed.stage4_instruct --config mini --work "$work" --out "$out" \
    --lr 0.04 --row-lr 0.05 --optim.warmup 0 --optim.schedule constant --steps 12 \
    --gates.every 2 --log-every 1
echo "exit code $?"
grep gate/ "$out/log.jsonl"
