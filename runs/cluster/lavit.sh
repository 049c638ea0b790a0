#!/usr/bin/env bash
# LaVIT as published, on GPUS GPUs: selector and merger, codebook, image decoder, language model, instructions. Batches of
# pictures are over all processes; those of documents are a process's, so that gradients are accumulated until a step of
# pre-training holds 2,048 documents, and one of instructions 128.
#
#   GPUS=8 runs/cluster/lavit.sh FILES PAIRS SETS [WORK]
#
# FILES holds eva_vitg_psz14.bin, and the folders sd15 (Stable Diffusion 1.5, in the layout of diffusers) and llama-7b; PAIRS
# tar shards of pictures; SETS pretrain.json and instruct.json, which say where each set of the tables in
# src/rebus/papers/lavit/language_training.py lies. LAUNCH starts one stage.
set -euo pipefail
cd "$(dirname "$0")/../.."
rebus=${REBUS:-.venv/bin/rebus}
launch=${LAUNCH:-runs/cluster/one_node.sh}
gpus=${GPUS:?how many GPUs there are in all}
files=$1 pairs=$2 sets=$3 work=${4:-state/lavit}

train() {
  $launch "lavit.$1" --config paper --work "$work" --out "$work/lavit.$1" "${@:2}"
}
# batches to accumulate: documents of a step, and of a process's batch
steps() {
  echo $((($1 + $2 * gpus - 1) / ($2 * gpus)))
}

# the tokenizer and the image decoder
pictures=(--data "$pairs" --vision "$files/eva_vitg_psz14.bin" --recompute)
train stage1a_selector "${pictures[@]}"
train stage1b_codebook "${pictures[@]}"
train stage3_pixels "${pictures[@]}" --pixels "$files/sd15"
[ -d "$work/tokenizer" ] || "$rebus" pack lavit:v1 --work "$work" --output "$work/tokenizer"

# the language model is trained as a whole
language=(--tokenizer "$work/tokenizer" --base "$files/llama-7b" --parallel fsdp --recompute)
train stage2_language --data "$sets/pretrain.json" "${language[@]}" --optim.accumulate "$(steps 2048 32)"
train stage4_instruct --data "$sets/instruct.json" "${language[@]}" --optim.accumulate "$(steps 128 16)"
