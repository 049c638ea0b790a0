#!/usr/bin/env bash
# SEED-X as published, on GPUS GPUs: both stages of the image decoder, pre-training, and an adapter for each speciality. The
# language model's batches are a process's, so that gradients are accumulated until a step holds what the paper's 48 GPUs
# held with two batches each.
#
#   GPUS=8 runs/cluster/seed_x.sh FILES PICTURES EDITS SETS [WORK]
#
# FILES holds qwen_vit_G.pt, and the folders sdxl (in the layout of diffusers), llama (Llama-2-chat-13B) and, for the
# specialities, seed_x, a saved SEED-X whose language model is the base (`rebus convert` writes one); PICTURES and EDITS are
# sources of documents; SETS holds pretrain.json and one file for each speciality. LAUNCH starts one stage.
set -euo pipefail
cd "$(dirname "$0")/../.."
launch=${LAUNCH:-runs/cluster/one_node.sh}
gpus=${GPUS:?how many GPUs there are in all}
files=$1 pictures=$2 edits=$3 sets=$4 work=${5:-state/seed_x}

train() {
  $launch "seed_x.$1" --config paper --work "$work" "${@:2}"
}
accumulate=$(((2 * 48 + gpus - 1) / gpus))

decoder=(--data "$pictures" --vision "$files/qwen_vit_G.pt" --pixels "$files/sdxl" --parallel fsdp --recompute)
train detokenizer1 --out "$work/seed_x.detokenizer1" "${decoder[@]}"
train detokenizer2 --out "$work/seed_x.detokenizer2" "${decoder[@]}" --edits "$edits"

language=(--parallel fsdp --recompute --base-dtype bf16 --optim.accumulate "$accumulate")
train pretrain --out "$work/seed_x.pretrain" --data "$sets/pretrain.json" --vision "$files/qwen_vit_G.pt" --base "$files/llama" "${language[@]}"
for speciality in chat edit story layout try_on; do
  out=$work/seed_x.instruct.$speciality
  train instruct --out "$out" --speciality "$speciality" --data "$sets/$speciality.json" --base "$files/seed_x" "${language[@]}"
done
