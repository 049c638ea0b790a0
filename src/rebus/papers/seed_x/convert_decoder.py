"""Published weights of SEED-X's image decoder → ours and back: where every tensor of a first- or second-stage file goes.

A stage's file holds the adapter and all of the UNet, or only what was trained of it; it is laid over a folder of SDXL in
the layout of diffusers. Everything is read one tensor at a time.

Dimension key: S features · C width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rebus.checkpoint import (
    Converted,
    LazyTensors,
    Move,
    Rule,
    convert,
    export,
    lay_over,
    read_tensors,
    without_weights,
    write_pickle,
)
from rebus.diffusion.pipeline import read_diffusion
from rebus.errors import RebusError
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer, SdxlDetokenizerConfig, stage_of

STAGES = {1: "seed_detokenizer/first_stage", 2: "seed_detokenizer/second_stage"}
"""Where a release has them; in each lies `pytorch_model.bin`."""
WIDENED = "unet.conv_in.weight"


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


@dataclass(frozen=True, eq=False)
class ConvertedDecoder:
    """An image decoder, converted."""

    config: SdxlDetokenizerConfig
    """Its config, sizes of SDXL's networks as their folder says."""
    tensors: LazyTensors
    """Its tensors, as a `SdxlDetokenizer` names them."""
    converted: Converted
    """What became of those that have no place."""

    @property
    def stage(self) -> int:
        """1, or 2 for one that edits."""
        return stage_of(self.config.diffusion.unet)


def convert_decoder(
    file: Path,
    sdxl: Path,
    empty_SC: Tensor,
    *,
    config: SdxlDetokenizerConfig | None = None,
    ignore_unexpected: Sequence[str] = (),
) -> ConvertedDecoder:
    """A first- or second-stage file laid over the diffusers folder `sdxl`. `empty_SC` are the features of a picture of
    zeros (`tokenizer.blank()`), which no published file holds; `config` gives sizes other than the published ones.

    Raises RebusError listing whatever does not fit: all of the adapter must be there, the widened input layer is what
    tells a second stage, and every tensor has its place.
    """
    config = config or SdxlDetokenizerConfig()
    diffusion, networks = read_diffusion(sdxl)
    published = read_tensors(file)
    latent = int(diffusion.unet["out_channels"])
    channels = published.meta[WIDENED].shape[1] if WIDENED in published else latent
    if channels not in (latent, 2 * latent):
        raise RebusError(
            f"The first layer of the UNet in {file} takes {channels} channels, but a first stage has {latent} and a second "
            f"{2 * latent}. Name a file of one of SEED-X's two stages."
        )
    diffusion = replace(diffusion, unet={**diffusion.unet, "in_channels": channels})
    config = replace(config, diffusion=diffusion, slots=len(empty_SC))
    with without_weights():
        ours = SdxlDetokenizer(config).state_dict()
    if empty_SC.shape != ours["empty_SC"].shape:
        raise RebusError(
            f"The features of the empty picture have the shape {list(empty_SC.shape)}, but {list(ours['empty_SC'].shape)} "
            "is needed. Take those of this model's tokenizer, pooled as for an image to be drawn."
        )
    learned = {name: x for name, x in ours.items() if name.startswith(("adapter.", "diffusion.unet."))}
    unet = {name: x for name, x in networks.meta.items() if name.startswith("unet.")}
    whole = lay_over(LazyTensors(unet, networks.__getitem__), published)
    converted = convert(whole, DECODER_RULES, learned, ignore_unexpected=ignore_unexpected)
    vae = {f"diffusion.{name}": x for name, x in networks.meta.items() if name not in unet}
    pixels = LazyTensors(vae, lambda name: networks[name.removeprefix("diffusion.")])
    return ConvertedDecoder(config, lay_over(pixels, converted.tensors, {"empty_SC": empty_SC}), converted)


def export_decoder(tensors: Mapping[str, Tensor], config: SdxlDetokenizerConfig, folder: Path) -> Path:
    """Writes the adapter and the UNet as the published file of their stage, under the release's folder `folder`; returns
    its path. The VAE is SDXL's own and stays with its folder. Whoever calls writes `folder` whole or not at all."""
    shapes = tensors.meta if isinstance(tensors, LazyTensors) else tensors
    own = {name: x for name, x in shapes.items() if name.startswith(("adapter.", "diffusion.unet."))}
    path = folder / STAGES[stage_of(config.diffusion.unet)] / "pytorch_model.bin"
    path.parent.mkdir(parents=True)
    write_pickle(path, export(LazyTensors(own, tensors.__getitem__), DECODER_RULES))
    return path
