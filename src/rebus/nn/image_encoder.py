"""A frozen CLIP image encoder, whose image embeddings detokenizers are trained towards.

Dimension key: I images · D width of the image embedding · h w sides in pixels
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from rebus.errors import RebusError


class ClipImageEncoder(nn.Module):
    """Pixels → image embeddings, not normalised. `folder` holds a Hugging Face CLIP (SEED: CLIP-ViT-H-14-laion2B), or is
    a hub id that is already in the local cache. Raises RebusError when it cannot be read."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        try:
            clip = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise RebusError(
                f"{folder} has no CLIP image encoder that can be read ({str(error).splitlines()[0]}). Name the folder of "
                "one, with config.json and its weights."
            ) from error
        self.clip = clip.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.clip.config.projection_dim

    @torch.no_grad()
    def forward(self, pixels_I3hw: Tensor) -> Tensor:
        """Pixels normalised with CLIP's mean and deviation → x_ID. Raises RebusError for another image size than its own."""
        size = self.clip.config.image_size
        if tuple(pixels_I3hw.shape[-2:]) != (size, size):
            raise RebusError(
                f"The CLIP image encoder reads images of {size} × {size} pixels, but was given "
                f"{pixels_I3hw.shape[-2]} × {pixels_I3hw.shape[-1]}. Use the tokenizer's image size for both."
            )
        return self.clip(pixel_values=pixels_I3hw).image_embeds
