"""Published SEED-X weights → ours, but for the image decoder: where every tensor of a release's files goes.

A release has the vision encoder (Qwen-VL-Chat's, in a file of its own), the agent (both resamplers and the places of
views), and a LLaMA. A checkpoint of instruction tuning holds agent and LLaMA in one, the LLaMA with its adapters beside
it and the norms twice: as they were, and as trained.
"""

from __future__ import annotations

from collections.abc import Iterable

from rebus.checkpoint.rules import Drop, Move, Rule, Split
from rebus.nn.lora import LLAMA_PROJECTIONS

_COMPUTED = "computed from the config"


def resampler_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A resampler, whose tensors are named `theirs` and `ours` in front."""
    thirds = ("query", "key", "value")
    return (
        Move(f"{theirs}query", f"{ours}queries_QC"),
        Move(f"{theirs}pos_embed", f"{ours}position_QC"),
        Move(f"{theirs}kv_proj.weight", f"{ours}source.weight"),
        Move(f"{theirs}ln_q.{{p}}", f"{ours}norm_queries.{{p}}"),
        Move(f"{theirs}ln_kv.{{p}}", f"{ours}norm_source.{{p}}"),
        Split(f"{theirs}attn.in_proj_weight", tuple(f"{ours}{third}.weight" for third in thirds)),
        Split(f"{theirs}attn.in_proj_bias", tuple(f"{ours}{third}.bias" for third in thirds)),
        Move(f"{theirs}attn.out_proj.{{p}}", f"{ours}proj.{{p}}"),
    )


def vision_rules(heads: int) -> tuple[Rule, ...]:
    """The vision encoder. Its fused projections hold query, key and value of one head after the other; ours all queries,
    then all keys, then all values."""
    block = "transformer.resblocks.{n}"
    per_head = {"heads": heads, "qkv": 3}
    return (
        Move("conv1.weight", "trunk.patch_embed.weight"),
        Move("positional_embedding", "trunk.pos_embed", "n c -> 1 n c"),
        Move("ln_pre.{p}", "trunk.norm_before.{p}"),
        Move(
            f"{block}.attn.in_proj.weight",
            "trunk.blocks.{n}.attn.qkv.weight",
            "(heads qkv e) c -> (qkv heads e) c",
            per_head,
        ),
        Move(
            f"{block}.attn.in_proj.bias", "trunk.blocks.{n}.attn.qkv.bias", "(heads qkv e) -> (qkv heads e)", per_head
        ),
        Move(f"{block}.attn.out_proj.{{p}}", "trunk.blocks.{n}.attn.proj.{p}"),
        Move(f"{block}.ln_1.{{p}}", "trunk.blocks.{n}.norm1.{p}"),
        Move(f"{block}.ln_2.{{p}}", "trunk.blocks.{n}.norm2.{p}"),
        Move(f"{block}.mlp.c_fc.{{p}}", "trunk.blocks.{n}.mlp.fc1.{p}"),
        Move(f"{block}.mlp.c_proj.{{p}}", "trunk.blocks.{n}.mlp.fc2.{p}"),
        *resampler_rules("attn_pool.", "pool."),
        Move("ln_post.{p}", "norm.{p}"),
        Move("proj", "proj.weight", "i o -> o i"),
    )


AGENT_RULES: tuple[Rule, ...] = (
    Move("patch_pos_embed", "input_projector.position_4D"),
    *resampler_rules("input_resampler.", "input_projector.resampler."),
    *resampler_rules("output_resampler.", "output_projector.resampler."),
)
"""The agent (`agent/pytorch_model.bin`), as the projectors of an `InterleavedLM`."""

LANGUAGE_RULES: tuple[Rule, ...] = (
    Drop("model.layers.{n}.self_attn.rotary_emb.inv_freq", _COMPUTED),
    Move("{rest*}", "llm.base.{rest*}"),
)
"""The language model of a release, a plain LLaMA of Hugging Face, as the `llm` of an `InterleavedLM`."""


def tuned_rules(targets: Iterable[str] = LLAMA_PROJECTIONS) -> tuple[Rule, ...]:
    """A checkpoint of instruction tuning, in the names of PEFT 0.4, as an `InterleavedLM` whose language model has
    adapters at `targets`."""
    theirs, ours = "llm.base_model.model.", "llm.base."
    norms = ("model.layers.{n}.input_layernorm", "model.layers.{n}.post_attention_layernorm", "model.norm")
    return (
        *AGENT_RULES,
        Drop(f"{theirs}{{rest*}}.rotary_emb.inv_freq", _COMPUTED),
        Drop(f"{theirs}{{rest*}}.original_module.weight", "the norm before training; the trained one is in use"),
        *(Move(f"{theirs}{norm}.modules_to_save.default.weight", f"{ours}{norm}.weight") for norm in norms),
        Move(f"{theirs}{{rest*}}.lora_A.{{name}}.weight", f"{ours}{{rest*}}.lora_A.{{name}}.weight"),
        Move(f"{theirs}{{rest*}}.lora_B.{{name}}.weight", f"{ours}{{rest*}}.lora_B.{{name}}.weight"),
        *(Move(f"{theirs}{{rest*}}.{t}.weight", f"{ours}{{rest*}}.{t}.base_layer.weight") for t in targets),
        Move(f"{theirs}{{rest*}}", f"{ours}{{rest*}}"),
    )
