"""Published LaVIT weights → ours: where every tensor of the release's files goes.

A release has the vision encoder (`eva_vitg_psz14.bin`), the rest of the tokenizer (`tokenizer_encoder.bin`), the way into
the language model (`visual_weight.bin`: another merger, and a linear layer), two decoders, and a LLaMA.
"""

from __future__ import annotations

from rebus.checkpoint.rules import Drop, Move, Rule

_UNUSED = "LaVIT reads the last block without EVA-CLIP's final norm and its projection to text"


def vision_rules(theirs: str) -> tuple[Rule, ...]:
    """EVA-CLIP's vision encoder (`theirs`: the prefix of its tensors)."""
    return (
        Drop(f"{theirs}norm.{{p}}", _UNUSED),
        Drop(f"{theirs}head.{{p}}", _UNUSED),
        Move(f"{theirs}patch_embed.proj.{{p}}", "visual_encoder.patch_embed.{p}"),
        Move(f"{theirs}{{rest*}}", "visual_encoder.{rest*}"),
    )


MERGER_RULES: tuple[Rule, ...] = (
    Move("causal_encoder.ln_vision.{p}", "merger.source_norm.{p}"),
    Move("causal_encoder.norm.{p}", "merger.norm.{p}"),
    Move("causal_encoder.blocks.{n}.token_causal_attn.{layer}.{p}", "merger.blocks.{n}.causal.{layer}.{p}"),
    Move("causal_encoder.blocks.{n}.token_cross_attn.{layer}.{p}", "merger.blocks.{n}.cross.{layer}.{p}"),
    Move("causal_encoder.blocks.{n}.mlp.{layer}.{p}", "merger.blocks.{n}.mlp.{layer}.{p}"),
    Move("causal_encoder.blocks.{n}.{norm}.{p}", "merger.blocks.{n}.{norm}.{p}"),
)
"""A merger: the tokenizer's in one file, the language model's in another, under the same names."""

ENCODER_RULES: tuple[Rule, ...] = (
    Move("token_predictor.in_conv.{n}.{p}", "selector.mix.{n}.{p}"),
    Move("token_predictor.out_conv.{n}.{p}", "selector.score.{n}.{p}"),
    *MERGER_RULES,
    Move("encode_task_layer.{n}.{p}", "to_code.{n}.{p}"),
    Move("quantize.embedding.weight", "quantizer.codebook_KC"),
)
"""The tokenizer without the vision encoder (`tokenizer_encoder.bin`)."""

PROJECTOR_RULES: tuple[Rule, ...] = (*MERGER_RULES, Move("vit_proj.{p}", "proj.{p}"))
"""The way into the language model (`visual_weight.bin`), as a `LavitInputProjector`."""

LANGUAGE_RULES: tuple[Rule, ...] = (
    Drop("model.layers.{n}.self_attn.rotary_emb.inv_freq", "computed from the config"),
    Move("{rest*}", "base.{rest*}"),
)
"""The language model, a plain LLaMA of Hugging Face, as the `base` of a `TextModel`."""

DECODER_RULES: tuple[Rule, ...] = (
    Move("pos_embed", "decoder.positions"),
    Move("query_embed", "decoder.queries"),
    Move("in_proj.{p}", "decoder.in_proj.{p}"),
    Move("blocks.{n}.self_attn.{layer}.{p}", "decoder.blocks.{n}.self_attention.{layer}.{p}"),
    Move("blocks.{n}.cross_attn.{layer}.{p}", "decoder.blocks.{n}.cross.{layer}.{p}"),
    Move("blocks.{n}.mlp.{layer}.{p}", "decoder.blocks.{n}.mlp.{layer}.{p}"),
    Move("blocks.{n}.{norm}.{p}", "decoder.blocks.{n}.{norm}.{p}"),
    Move("norm.{p}", "decoder.norm.{p}"),
    Move("decode_task_layer.{n}.{p}", "decoder.head.{n}.{p}"),
    Move("unet_proj.{p}", "head.proj.{p}"),
    Move("unet_proj_1.{p}", "head.first.{p}"),
    Move("unet_proj_2.{p}", "head.second.{p}"),
    Move("unet_attnpool.positional_embedding", "head.pool.positions"),
    Move("unet_attnpool.q_proj.{p}", "head.pool.query.{p}"),
    Move("unet_attnpool.k_proj.{p}", "head.pool.key.{p}"),
    Move("unet_attnpool.v_proj.{p}", "head.pool.value.{p}"),
    Move("unet_attnpool.c_proj.{p}", "head.pool.proj.{p}"),
)
"""Both decoders with their heads (`tokenizer_decoder.bin`, `highres_tokenizer_decoder.bin`)."""
