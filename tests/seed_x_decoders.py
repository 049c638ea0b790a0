"""SEED-X's image decoders, tiny and random: on SDXL's kind of UNet in the published layout, and on the mini denoiser."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import nn

from rebus.checkpoint import export
from rebus.diffusion.denoiser import TransformerConfig
from rebus.diffusion.draft import GridDraftConfig
from rebus.diffusion.pipeline import DiffusionConfig
from rebus.diffusion.sdxl import SDXL_SCHEDULER
from rebus.diffusion.vae import VaeConfig
from rebus.papers.seed_x.adapter import AdapterConfig
from rebus.papers.seed_x.convert_decoder import DECODER_RULES
from rebus.papers.seed_x.detokenizer import SeedXDetokenizer, SeedXDetokenizerConfig
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer, SdxlDetokenizerConfig

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 0.13025,
}
ADAPTER = AdapterConfig(
    in_width=12, latents=4, width=16, depth=2, heads=2, head_width=6, mlp_ratio=2, widths=(8, 16), pooled=16
)


def sdxl_config(stage: int) -> SdxlDetokenizerConfig:
    unet = {**UNET, "in_channels": 4 * stage}
    return SdxlDetokenizerConfig(
        ADAPTER, DiffusionConfig(unet, SDXL_SCHEDULER, VAE), slots=4, size=(32, 32), steps=2, batch=2
    )


def mini_config(stage: int) -> SeedXDetokenizerConfig:
    return SeedXDetokenizerConfig(
        adapter=ADAPTER,
        vae=VaeConfig(unshuffle=2, channels=(32, 32)),
        denoiser=TransformerConfig(
            extra_channels=4 * stage, side=8, head_width=8, heads=2, depth=2, token_width=24, vector_width=32
        ),
        draft=GridDraftConfig(token_width=8, grid=4, widths=(8, 8)),
        steps=2,
    )


def decoder(kind: str, stage: int, source: str = "ours") -> SdxlDetokenizer | SeedXDetokenizer:
    """One with something to say to everything: random numbers everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage)
        made: nn.Module = (
            SdxlDetokenizer(sdxl_config(stage), source=source)
            if kind == "sdxl"
            else SeedXDetokenizer(mini_config(stage), source=source)
        )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            if kind == "sdxl":
                made.empty_SC.normal_()
    return made.eval()  # type: ignore[return-value]


def write_sdxl(folder: Path, made: SdxlDetokenizer) -> None:
    """The folder of SDXL that a decoder is laid over: its VAE, a UNet of its own, a sampler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        unet = diffusers.UNet2DConditionModel(**UNET)
    unet.save_pretrained(folder / "unet")
    made.diffusion.vae.save_pretrained(folder / "vae", safe_serialization=False)
    scheduler = {name: value for name, value in SDXL_SCHEDULER.items() if name != "_class_name"}
    diffusers.EulerDiscreteScheduler(**scheduler).save_pretrained(folder / "scheduler")


def write_stage(path: Path, made: SdxlDetokenizer, only: str = "") -> None:
    """A stage's file, pickled; with `only`, the adapter and those tensors of the UNet that contain it."""
    held = {k: x for k, x in made.state_dict().items() if k.startswith(("adapter.", "diffusion.unet."))}
    theirs = export(held, DECODER_RULES)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: theirs[k].clone() for k in theirs if k.startswith("resampler.") or only in k}, path)
