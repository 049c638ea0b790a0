"""Published weights of SEED-X's image decoder → ours: where every tensor of a first- or second-stage file goes."""

from __future__ import annotations

from rebus.checkpoint.rules import Move, Rule


def adapter_rules(theirs: str = "resampler.") -> tuple[Rule, ...]:
    """The adapter (`theirs`: the prefix of its tensors)."""
    layer, ours = f"{theirs}layers.{{n}}", "adapter.layers.{n}"
    pool, head = f"{theirs}unet_attnpool.", "adapter.head."
    return (
        Move(f"{theirs}latents", "adapter.latents_1SC"),
        Move(f"{theirs}proj_in.{{p}}", "adapter.proj_in.{p}"),
        Move(f"{theirs}norm_out.{{p}}", "adapter.norm.{p}"),
        Move(f"{layer}.0.norm1.{{p}}", f"{ours}.attention.source_norm.{{p}}"),
        Move(f"{layer}.0.norm2.{{p}}", f"{ours}.attention.norm.{{p}}"),
        Move(f"{layer}.0.to_q.{{p}}", f"{ours}.attention.query.{{p}}"),
        Move(f"{layer}.0.to_kv.{{p}}", f"{ours}.attention.key_value.{{p}}"),
        Move(f"{layer}.0.to_out.{{p}}", f"{ours}.attention.proj.{{p}}"),
        Move(f"{layer}.1.0.{{p}}", f"{ours}.feed_forward.norm.{{p}}"),
        Move(f"{layer}.1.1.{{p}}", f"{ours}.feed_forward.fc1.{{p}}"),
        Move(f"{layer}.1.3.{{p}}", f"{ours}.feed_forward.fc2.{{p}}"),
        Move(f"{theirs}unet_proj_1.{{p}}", f"{head}first.{{p}}"),
        Move(f"{theirs}unet_proj_2.{{p}}", f"{head}second.{{p}}"),
        Move(f"{pool}positional_embedding", f"{head}pool.positions"),
        Move(f"{pool}q_proj.{{p}}", f"{head}pool.query.{{p}}"),
        Move(f"{pool}k_proj.{{p}}", f"{head}pool.key.{{p}}"),
        Move(f"{pool}v_proj.{{p}}", f"{head}pool.value.{{p}}"),
        Move(f"{pool}c_proj.{{p}}", f"{head}pool.proj.{{p}}"),
    )


DECODER_RULES: tuple[Rule, ...] = (*adapter_rules(), Move("unet.{rest*}", "diffusion.unet.{rest*}"))
"""A file of either stage (`first_stage/pytorch_model.bin`, `second_stage/pytorch_model.bin`)."""
