"""Denoisers: a diffusers network that sees a noisy latent, a time, and a condition of up to three kinds.

Dimension key: I images · S condition tokens · C token width · D vector width · c latent channels · e extra channels ·
h w latent sides
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from rebus.nn.attention import short_attention


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told. Zeros stand for "not told", so that one network serves every kind of condition."""

    tokens_ISC: Tensor
    """Read by attention: patch features, slots, code vectors."""
    vector_ID: Tensor
    """Joined to the time embedding: an image embedding."""
    extra_Iehw: Tensor
    """Joined to the noisy latent as further channels: a draft, or the latent of a source image."""

    def zeros(self) -> Condition:
        """The empty condition of the same shape: the unconditional row of classifier-free guidance."""
        return Condition(*(torch.zeros_like(x) for x in (self.tokens_ISC, self.vector_ID, self.extra_Iehw)))

    def cat(self, other: Condition) -> Condition:
        """Both conditions as one batch."""
        return Condition(
            torch.cat([self.tokens_ISC, other.tokens_ISC]),
            torch.cat([self.vector_ID, other.vector_ID]),
            torch.cat([self.extra_Iehw, other.extra_Iehw]),
        )

    def detach(self) -> Condition:
        """The same condition, through which no gradient flows."""
        return Condition(self.tokens_ISC.detach(), self.vector_ID.detach(), self.extra_Iehw.detach())

    def where(self, told_I: Tensor, kind: str) -> Condition:
        """The condition with `kind` ("tokens_ISC" | "vector_ID" | "extra_Iehw") kept only where `told_I` is true."""
        x = getattr(self, kind)
        return replace(self, **{kind: x * told_I.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)})


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the mini denoiser, a multimodal diffusion transformer with explicit positions (the SD 3 block)."""

    latent_channels: int = 4
    """Channels of the latent."""
    extra_channels: int = 4
    """Further input channels."""
    side: int = 16
    """Side of the latent."""
    patch: int = 2
    """Latent values along one side of a transformer token."""
    head_width: int = 48
    """Width of an attention head."""
    heads: int = 4
    """Attention heads; the width is heads × head_width."""
    depth: int = 6
    """Blocks."""
    token_width: int = 192
    """Width C of condition tokens."""
    vector_width: int = 1024
    """Width D of the condition vector."""


class Denoiser(nn.Module):
    """Noisy latent [I, c, h, w], time [I] in 0..1000 and a condition → the network's prediction [I, c, h, w]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.net = SD3Transformer2DModel(
            sample_size=config.side,
            patch_size=config.patch,
            in_channels=config.latent_channels + config.extra_channels,
            out_channels=config.latent_channels,
            num_layers=config.depth,
            attention_head_dim=config.head_width,
            num_attention_heads=config.heads,
            joint_attention_dim=config.token_width,
            caption_projection_dim=config.heads * config.head_width,
            pooled_projection_dim=config.vector_width,
            pos_embed_max_size=config.side // config.patch,
            qk_norm="rms_norm",
        )
        # A start in which every block leaves its input as it is and the output is zero: trains faster (DiT).
        for name, layer in self.net.named_modules():
            if isinstance(layer, nn.Linear) and (name.endswith(("norm1.linear", "norm1_context.linear", "proj_out"))):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def blank(self, images: int, tokens: int = 1, *, like: Tensor) -> Condition:
        """The empty condition for `images` images, on the device and with the dtype of `like`."""
        c = self.config
        return Condition(
            like.new_zeros(images, tokens, c.token_width),
            like.new_zeros(images, c.vector_width),
            like.new_zeros(images, c.extra_channels, c.side, c.side),
        )

    def forward(self, x_Ichw: Tensor, time_I: Tensor, condition: Condition) -> Tensor:
        """What the network predicts; its meaning (noise, velocity) is the scheduler's."""
        with short_attention(x_Ichw):
            return self.net(
                hidden_states=torch.cat([x_Ichw, condition.extra_Iehw.to(x_Ichw.dtype)], dim=1),
                encoder_hidden_states=condition.tokens_ISC.to(x_Ichw.dtype),
                pooled_projections=condition.vector_ID.to(x_Ichw.dtype),
                timestep=time_I,
                return_dict=False,
            )[0]
