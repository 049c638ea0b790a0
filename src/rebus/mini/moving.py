"""Augmentation (random affine, random tint): pictures that are moved a little, so that a model that reads them again never reads the same.

    documents = Moved(EmojiDocuments(...), share=0.6, seed=0)

Dimension key: I pictures of a batch
"""

from __future__ import annotations

from random import Random

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.data.loader import Addressed
from rebus.data.sources import Documents
from rebus.document import Box, Document, Image, Role

TURN = 0.2
"""Most that a picture is turned to either side, in radians."""
SMALLEST, LARGEST = 0.75, 1.1
"""How large a picture becomes, as a share of its size."""
SHIFT = 0.075
"""Most that a picture is shifted along either side, as a share of it."""
TINT = 0.12
"""Standard deviation of what each colour channel takes from each."""


class Moved:
    """Documents of which a share of the pictures that the user shows is moved; a pure function of the position, as what it
    draws from. Documents with boxes stay as they are: there it matters where things lie."""

    def __init__(self, documents: Addressed, *, share: float, seed: int) -> None:
        self.documents, self.share, self.seed = documents, share, seed

    def __getitem__(self, position: int, /) -> Document:
        document = self.documents[position]
        if any(isinstance(part, Box) for message in document.messages for part in message.content):
            return document
        rng = Random(f"moved {self.seed} {position}")

        def change(image: Image, role: Role) -> Image:
            if role != "user" or image.pixels is None or rng.random() >= self.share:
                return image
            return Image(moved_picture(image.pixels, torch.Generator().manual_seed(rng.getrandbits(62))))

        return document.map_images(change)


class MovedSource(Moved):
    """The same of a source that has a length and no end, to be mixed with others."""

    endless = True

    def __init__(self, documents: Documents, *, share: float, seed: int) -> None:
        super().__init__(documents, share=share, seed=seed)
        self.length = len(documents)

    def __len__(self) -> int:
        return self.length


def moved_picture(picture: PIL.Image.Image, generator: torch.Generator) -> PIL.Image.Image:
    """One picture, as `moved`."""
    pixels_HW3 = torch.from_numpy(np.array(picture.convert("RGB")))
    (made_3HW,) = moved(pixels_HW3.permute(2, 0, 1)[None].float() / 127.5 - 1, generator)
    return PIL.Image.fromarray(((made_3HW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def moved(pixels_I3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture, on white, turned, shifted, made smaller or larger, and tinted; −1..1 in and nearly so out. Never
    mirrored: an arrow to the left is another thing than one to the right."""
    count = len(pixels_I3HW)

    def drawn(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    scale, turn = 1 / drawn(SMALLEST, LARGEST), drawn(-TURN, TURN)
    ways = torch.zeros(count, 2, 3)
    ways[:, 0, 0], ways[:, 0, 1] = scale * turn.cos(), -scale * turn.sin()
    ways[:, 1, 0], ways[:, 1, 1] = scale * turn.sin(), scale * turn.cos()
    ways[:, :, 2] = torch.stack([drawn(-2 * SHIFT, 2 * SHIFT), drawn(-2 * SHIFT, 2 * SHIFT)], dim=1)
    grid = F.affine_grid(ways, list(pixels_I3HW.shape), align_corners=False)
    dark = F.grid_sample(pixels_I3HW.cpu() - 1, grid, align_corners=False)  # what lies outside becomes white
    tint = torch.eye(3) + TINT * torch.randn(count, 3, 3, generator=generator)
    return (torch.einsum("icd,idhw->ichw", tint, dark) + 1).to(pixels_I3HW)
