#!/usr/bin/env bash
# seed_x:mini from nothing, on the parts that all minis share: SEED-X's stages, the embedded weights, and an adapter for each
# speciality beside them. Every step goes on where it was stopped, so running this again is safe. The shared parts are trained
# only where they are not there yet; `rebus unpack mini --work WORK` writes the embedded ones.
#
#     runs/seed_x_mini.sh [WORK] [SPECIALITY …]
set -euo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
work=${1:-state}
specialities=("${@:2}")
[ ${#specialities[@]} -gt 0 ] || specialities=(chat edit story layout try_on)
weights=weights/seed_x-mini

train() {
  "$rebus" train "$1" --config mini --work "$work" --out "$work/$1" "${@:2}"
}
source runs/side_by_side.sh

"$rebus" data emoji -o "$work/emoji"
"$rebus" data lines -o "$work/emoji"

# shared by all papers
for part in mini.vae mini.vision mini.denoiser; do
  # weights without a checkpoint beside them were unpacked: there is nothing to go on with
  if [ ! -f "$work/$part/weights.safetensors" ] || compgen -G "$work/$part/checkpoint-*" > /dev/null; then
    train "$part"
  fi
done
[ -f weights/mini/system.json ] || "$rebus" pack mini --work "$work" --output weights/mini

# the image decoder, from features alone, then seeing the picture that is to be changed; beside it the language model, which
# reads views, points with boxes, and regresses features
decoder() { train seed_x.detokenizer1 && train seed_x.detokenizer2 && train seed_x.keeping; }
language() { train seed_x.naming && train seed_x.drawing && train seed_x.pretrain --eval-every 600; }
side_by_side language decoder

# adapters are tuned on the base as it is packed, and belong to it; packing changes nothing where these weights are there
"$rebus" pack seed_x:mini --work "$work" --output "$weights"
for speciality in "${specialities[@]}"; do
  "$rebus" train seed_x.instruct --config mini --speciality "$speciality" --work "$work" \
    --out "$work/seed_x.instruct.$speciality" --base "$weights"
done
"$rebus" pack seed_x:mini --work "$work" --output "$weights"
