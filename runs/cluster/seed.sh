#!/usr/bin/env bash
# SEED and SEED-LLaMA as published, on GPUS GPUs: what runs/seed.sh does, at the papers' batches. Those of the tokenizer are
# over all processes; those of the language model are a process's, so that gradients are accumulated until a step holds what
# the papers' 64 (pre-training) and 32 (instructions) GPUs held.
#
#   GPUS=8 runs/cluster/seed.sh FILES PAIRS SETS [WORK]
#
# FILES, PAIRS and SETS as in runs/seed.sh. LAUNCH starts one stage: runs/cluster/one_node.sh, or what slurm.sh sets.
set -euo pipefail
cd "$(dirname "$0")/../.."
rebus=${REBUS:-.venv/bin/rebus}
launch=${LAUNCH:-runs/cluster/one_node.sh}
gpus=${GPUS:?how many GPUs there are in all}
files=$1 pairs=$2 sets=$3 work=${4:-state/seed}

mkdir -p "$work"
ln -sf "$(realpath -m "$files/eva_vit_g.pth")" "$work/eva_vit_g.pth"

train() {
  $launch "seed.$1" --config paper --work "$work" --out "$work/seed.$1" "${@:2}"
}
# batches to accumulate, so that a step holds as much as the paper's: its own number, its GPUs
steps() {
  echo $((($1 * $2 + gpus - 1) / gpus))
}

# the tokenizer fits into every GPU, and its codebook is not sharded
train stage1_qformer --data "$pairs" --vision "$files/eva_vit_g.pth" --blip2 "$files/blip2_pretrained.pth" --bert "$files/bert" --recompute
train stage2_codebook --data "$pairs" --vision "$files/eva_vit_g.pth" --clip "$files/clip" --recompute
[ -d "$work/tokenizer" ] || "$rebus" pack seed:v2-8b --work "$work" --output "$work/tokenizer"

# the language model: adapters, then all but the embeddings, then instructions
language=(--tokenizer "$work/tokenizer" --base "$files/vicuna" --parallel fsdp --recompute)
train stage3_pretrain --data "$sets/pretrain.json" "${language[@]}" --optim.accumulate "$(steps 4 64)"
train stage3_full --data "$sets/pretrain.json" "${language[@]}" --optim.accumulate "$(steps 4 64)"
train stage4_instruct --data "$sets/instruct.json" "${language[@]}" --optim.accumulate "$(steps 1 32)"
"$rebus" pack seed:v2-8b --work "$work" --output "$work/seed"
