#!/usr/bin/env bash
# lavit:mini from nothing, on the parts that all minis share: LaVIT's stages, and the embedded weights. Every step goes on
# where it was stopped, so running this again is safe. The shared parts are trained only where they are not there yet;
# `rebus unpack mini --work WORK` writes the embedded ones.
set -euo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
work=${1:-state}

train() {
  "$rebus" train "$1" --config mini --work "$work" --out "$work/$1" "${@:2}"
}
source runs/side_by_side.sh

"$rebus" data emoji -o "$work/emoji"

# shared by all papers
for part in mini.vae mini.vision mini.denoiser; do
  # weights without a checkpoint beside them were unpacked: there is nothing to go on with
  if [ ! -f "$work/$part/weights.safetensors" ] || compgen -G "$work/$part/checkpoint-*" > /dev/null; then
    train "$part"
  fi
done

# the tokenizer: selector and merger, then the codebook
train lavit.stage1a_selector --eval-every 250
train lavit.stage1b_codebook --eval-every 250

# the language model, beside it the image decoder
language() { train lavit.naming && train lavit.stage2_language && train lavit.stage4_instruct && train lavit.drawing; }
pixels() { # by the latent's error first, then by what pictures look like too
  "$rebus" train lavit.stage3_pixels --config mini --work "$work" --out "$work/lavit.stage3_pixels.first" --steps 550 &&
    train lavit.stage3_pixels --begin lavit.stage3_pixels.first --looks.weight 1 --singles 3 --batch 32 --steps 950 --lr 4e-4
}
side_by_side language pixels

[ -f weights/mini/system.json ] || "$rebus" pack mini --work "$work" --output weights/mini
"$rebus" pack lavit:mini --work "$work" --output weights/lavit-mini
