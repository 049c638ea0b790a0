#!/usr/bin/env bash
# SEED and SEED-LLaMA as published, from the files that they start from: the tokenizer in two stages on image-text pairs,
# the language model in three on the mixtures. Every step goes on where it was stopped.
#
#   runs/seed.sh FILES PAIRS SETS [WORK]
#
# FILES holds eva_vit_g.pth, blip2_pretrained.pth, and the folders bert (its tokenizer), clip (CLIP-ViT-H-14-laion2B) and
# vicuna; PAIRS tar shards of pictures and captions; SETS pretrain.json and instruct.json, which say where each set of
# src/rebus/papers/seed/mixture.py lies (null leaves one out). The paper had 64 GPUs; batches here are one process's.
set -euo pipefail
cd "$(dirname "$0")/.."
rebus=${REBUS:-.venv/bin/rebus}
files=$1 pairs=$2 sets=$3 work=${4:-state/seed}

mkdir -p "$work"
ln -sf "$(realpath "$files/eva_vit_g.pth")" "$work/eva_vit_g.pth"

train() {
  "$rebus" train "seed.$1" --config paper --work "$work" --out "$work/seed.$1" "${@:2}"
}

# the tokenizer
train stage1_qformer --data "$pairs" --vision "$files/eva_vit_g.pth" --blip2 "$files/blip2_pretrained.pth" --bert "$files/bert"
train stage2_codebook --data "$pairs" --vision "$files/eva_vit_g.pth" --clip "$files/clip"
[ -d "$work/tokenizer" ] || "$rebus" pack seed:v2-8b --work "$work" --output "$work/tokenizer"

# the language model: adapters, then all but the embeddings, then instructions
language=(--tokenizer "$work/tokenizer" --base "$files/vicuna")
train stage3_pretrain --data "$sets/pretrain.json" "${language[@]}"
train stage3_full --data "$sets/pretrain.json" "${language[@]}"
train stage4_instruct --data "$sets/instruct.json" "${language[@]}"
"$rebus" pack seed:v2-8b --work "$work" --output "$work/seed"
