#!/usr/bin/env bash
# seed:v1-mini, SEED v1 on the parts that all minis share. What it trains itself lies in a work folder of its own, in which
# the shared parts are links. Every step goes on where it was stopped, so running this again is safe. The shared parts are
# trained only where they are not there yet; `rebus unpack mini --work WORK` writes the embedded ones.
#
#     runs/seed_v1_mini.sh [WORK of the shared parts] [own WORK]
set -euo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
shared=${1:-state}
work=${2:-$shared/v1}

train() {
  "$rebus" train "$2" --config "$3" --work "$1" --out "$1/$2"
}

"$rebus" data emoji -o "$shared/emoji"

# stage 1 is seed:mini's: it does not depend on what the codes will give back
parts=(mini.vae mini.vision mini.denoiser seed.stage1_qformer)
for part in "${parts[@]}"; do
  # weights without a checkpoint beside them were unpacked: there is nothing to go on with
  if [ ! -f "$shared/$part/weights.safetensors" ] || compgen -G "$shared/$part/checkpoint-*" > /dev/null; then
    train "$shared" "$part" mini
  fi
done

mkdir -p "$work/cache" "$shared/bank"
for part in emoji bank "${parts[@]}"; do
  [ -e "$work/$part" ] || ln -s "$(realpath "$shared/$part")" "$work/$part"
done
# what the frozen parts say of the bank; the codes are this run's own
for array in latents tokens embeddings captions seed_causal seed_starts; do
  for file in cache/$array.{train,val}.{npy,of}; do
    if [ -e "$shared/$file" ] && [ ! -e "$work/$file" ]; then
      ln -s "$(realpath "$shared/$file")" "$work/$file"
    fi
  done
done

# codes that give back patch features; then pictures from these; then a language model that reads codes by a linear layer
train "$work" seed.stage2_codebook v1-mini
train "$work" seed.detokenizer v1-mini
train "$work" seed.stage3_pretrain v1-mini

[ -f weights/mini/system.json ] || "$rebus" pack mini --work "$shared" --output weights/mini
"$rebus" pack seed:v1-mini --work "$work" --output weights/seed-v1-mini
