"""SDXL base: the sizes of its networks, which LaVIT and SEED-X draw with, and what it is told of sizes.

Dimension key: I images
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rebus.diffusion.pipeline import SD_VAE

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE: dict[str, Any] = {**SD_VAE, "scaling_factor": 0.13025, "sample_size": 1024}
SDXL_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}


def whole_image(images: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """sizes_I6 of images drawn whole at `size` (height, width) in pixels: original size, corner of the crop, target
    size."""
    return torch.tensor([[*size, 0, 0, *size]], device=device).expand(images, -1)
