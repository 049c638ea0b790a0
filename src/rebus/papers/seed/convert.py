"""Published SEED weights → ours: where every tensor of `seed_quantizer.pt`, `eva_vit_g.pth` and the training
checkpoints goes (SEED-2 layout).

A usable tokenizer is the vision encoder's file (`VISION_RULES`) and the quantiser's (`RULES["tokenizer"]`) together.
"""

from __future__ import annotations

from typing import Literal

from rebus.checkpoint.rules import Drop, Move, Rule


def qformer_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A BERT of BLIP-2 (`theirs`: the prefix of its tensors) as a `QFormer` (`ours`), its query half."""
    layer, here = f"{theirs}.encoder.layer.{{n}}", f"{ours}.layers.{{n}}"
    moves: list[Rule] = [Move(f"{theirs}.embeddings.LayerNorm.{{p}}", f"{ours}.norm.{{p}}")]
    for attention, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        moves += [
            Move(f"{layer}.{attention}.output.dense.{{p}}", f"{here}.{name}.attention.proj.{{p}}"),
            Move(f"{layer}.{attention}.self.{{qkv}}.{{p}}", f"{here}.{name}.attention.{{qkv}}.{{p}}"),
            Move(f"{layer}.{attention}.output.LayerNorm.{{p}}", f"{here}.{name}.norm.{{p}}"),
        ]
    return (
        *moves,
        Move(f"{layer}.intermediate_query.dense.{{p}}", f"{here}.feed_forward.mlp.fc1.{{p}}"),
        Move(f"{layer}.output_query.dense.{{p}}", f"{here}.feed_forward.mlp.fc2.{{p}}"),
        Move(f"{layer}.output_query.LayerNorm.{{p}}", f"{here}.feed_forward.norm.{{p}}"),
        Drop(f"{theirs}.embeddings.position_ids", "a constant: 0, 1, 2, …"),
    )


VISION_RULES: tuple[Rule, ...] = (
    Drop("blocks.39.{rest*}", "SEED reads the output of block 39 of 40"),
    Drop("norm.{p}", "SEED reads the last block without EVA-CLIP's final norm"),
    Drop("fc_norm.{p}", "SEED reads the last block without EVA-CLIP's final norm"),
    Drop("head.{p}", "EVA-CLIP's projection to text, which SEED does not use"),
    Move("patch_embed.proj.{p}", "visual_encoder.patch_embed.{p}"),
    Move("{rest*}", "visual_encoder.{rest*}"),
)
"""The vision encoder's own file."""

TEXT_RULES: tuple[Rule, ...] = (
    Move("Qformer.bert.embeddings.word_embeddings.weight", "text.word_embeddings.weight"),
    Move("Qformer.bert.embeddings.position_embeddings.weight", "text.position_embeddings.weight"),
    Move("Qformer.bert.encoder.layer.{n}.intermediate.dense.{p}", "text.feed_forwards.{n}.mlp.fc1.{p}"),
    Move("Qformer.bert.encoder.layer.{n}.output.dense.{p}", "text.feed_forwards.{n}.mlp.fc2.{p}"),
    Move("Qformer.bert.encoder.layer.{n}.output.LayerNorm.{p}", "text.feed_forwards.{n}.norm.{p}"),
    Drop("Qformer.cls.predictions.bias", "the same numbers as cls.predictions.decoder.bias"),
    Move("Qformer.cls.predictions.transform.dense.{p}", "text.head.0.{p}"),
    Move("Qformer.cls.predictions.transform.LayerNorm.{p}", "text.head.2.{p}"),
    Move("Qformer.cls.predictions.decoder.{p}", "text.head.3.{p}"),
)
"""The text half of the Q-Former, which stage 1 trains beside the query half, as a `TextBranch` named `text`."""

CONTRASTIVE_RULES: tuple[Rule, ...] = (
    Move("vision_proj.{p}", "heads.vision_proj.{p}"),
    Move("text_proj.{p}", "heads.text_proj.{p}"),
    Move("temp", "heads.temperature"),
)
"""Stage 1's projections and temperature, as `ContrastiveHeads` named `heads`."""

_STAGE1 = "only stage 1 reads text and compares it with images; the tokenizer does not"

TOKENIZER_RULES: tuple[Rule, ...] = (
    Move("visual_encoder.patch_embed.proj.{p}", "visual_encoder.patch_embed.{p}"),
    Move("visual_encoder.{rest*}", "visual_encoder.{rest*}"),
    Move("ln_vision.{p}", "vision_norm.{p}"),
    Move("query_tokens", "qformer.query_tokens"),
    *qformer_rules("Qformer.bert", "qformer"),
    Move("encode_task_layer.{n}.{p}", "to_code.{n}.{p}"),
    Move("quantize.embedding.weight", "quantizer.codebook_KC"),
    Move("decode_task_layer.{n}.{p}", "from_code.{n}.{p}"),
    Move("pos_embed_image", "image_decoder.pos_embed"),
    Move("blocks_image.{rest*}", "image_decoder.blocks.{rest*}"),
    Move("pos_embed", "embedding_decoder.pos_embed"),
    Move("blocks.{rest*}", "embedding_decoder.blocks.{rest*}"),
    Move("image_down.{n}.{p}", "head.shrink.{n}.{p}"),
    Move("distill_image_proj.{p}", "head.proj.{p}"),
    Move("reverse_tokens", "head.qformer.query_tokens"),
    *qformer_rules("Reverse_Qformer.bert", "head.qformer"),
)
"""The tokenizer, both heads."""

LANGUAGE_RULES: tuple[Rule, ...] = (
    Drop("model.layers.{n}.self_attn.rotary_emb.inv_freq", "computed from the config"),
    Move("{rest*}", "base.{rest*}"),
)
"""The language model, a plain LLaMA of Hugging Face, as the `base` of a `TextModel`."""

BLIP2_RULES: tuple[Rule, ...] = (
    Drop("visual_encoder.{rest*}", "read from the vision encoder's own file"),
    Drop("itm_head.{p}", "SEED trains without image-text matching"),
    Move("ln_vision.{p}", "vision_norm.{p}"),
    Move("query_tokens", "qformer.query_tokens"),
    *qformer_rules("Qformer.bert", "qformer"),
    *TEXT_RULES,
    *CONTRASTIVE_RULES,
)
"""BLIP-2's first stage (`blip2_pretrained.pth`), from which SEED's stage 1 starts."""

RULES: dict[str, tuple[Rule, ...]] = {
    "tokenizer": (
        *TOKENIZER_RULES,
        *(Drop(rule.theirs, _STAGE1) for rule in TEXT_RULES + CONTRASTIVE_RULES if isinstance(rule, Move | Drop)),
    ),
    "lm": LANGUAGE_RULES,
}
"""For each part of a system, the rules of its published file."""

_REVERSE = "the Reverse Q-Former of the training script; this tokenizer's head is the released one"
_REVERSE_TEXT = "the text half of the Reverse Q-Former, which never reads text"


def tokenizer_rules(head: Literal["mlp", "reverse"]) -> tuple[Rule, ...]:
    """The tokenizer's rules for a file that may hold more than its own head: the other head's tensors are dropped."""
    bert = "Reverse_Qformer.bert"
    text = (
        f"{bert}.embeddings.{{table}}_embeddings.weight",
        f"{bert}.encoder.layer.{{n}}.intermediate.dense.{{p}}",
        f"{bert}.encoder.layer.{{n}}.output.{{part}}.{{p}}",
        "Reverse_Qformer.cls.{rest*}",
    )
    other: tuple[Rule, ...]
    if head == "mlp":
        other = (Drop("reverse_tokens", _REVERSE), Drop("Reverse_Qformer.{rest*}", _REVERSE))
    else:
        shrink = Drop("image_down.{n}.{p}", "the released head; this tokenizer's is the Reverse Q-Former")
        other = (shrink, *(Drop(name, _REVERSE_TEXT) for name in text))
    return (*other, *RULES["tokenizer"])
