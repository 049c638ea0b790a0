#!/usr/bin/env bash
# seed:mini from nothing: data, shared parts, SEED's stages, and the embedded weights. Every step goes on where it was
# stopped, so running this again is safe. Some hours on two CPU cores with bfloat16 instructions; weights/README.md has the rates.
set -euo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
work=${1:-state}

"$rebus" data emoji -o "$work/emoji"

# shared by all papers
"$rebus" train mini.vae      --work "$work" --out "$work/mini.vae"
"$rebus" train mini.vision   --work "$work" --out "$work/mini.vision"

# SEED's tokenizer
"$rebus" train seed.stage1_qformer  --work "$work" --out "$work/seed.stage1_qformer"
"$rebus" train seed.stage2_codebook --work "$work" --out "$work/seed.stage2_codebook"

# the image decoder: the shared base, then SEED's own, by the latent's error first and then by what pictures look like too
"$rebus" train mini.denoiser    --work "$work" --out "$work/mini.denoiser"
"$rebus" train seed.detokenizer --work "$work" --out "$work/seed.detokenizer.first" --steps 1400
"$rebus" train seed.detokenizer --work "$work" --out "$work/seed.detokenizer" --begin seed.detokenizer.first \
  --looks.weight 1 --singles 3 --true-share 0.1 --batch 32 --steps 850 --lr 3e-4

# the language model: what pictures show, then how to speak of them and draw them
"$rebus" train seed.naming          --work "$work" --out "$work/seed.naming"
"$rebus" train seed.stage3_pretrain --work "$work" --out "$work/seed.stage3_pretrain"
"$rebus" train seed.stage4_instruct --work "$work" --out "$work/seed.stage4_instruct"
"$rebus" train seed.drawing         --work "$work" --out "$work/seed.drawing"

"$rebus" pack mini      --work "$work" --output weights/mini
"$rebus" pack seed:mini --work "$work" --output weights/seed-mini
