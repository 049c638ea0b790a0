"""How many tokens a picture may have, and which of its patches they are: for systems that choose patches (LaVIT).

Dimension key: N patches · h w height and width in pixels
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import PIL.Image
from tyro.conf import arg

from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import to_rgb
from rebus.visual import Patches

Tokens = Annotated[
    int | None,
    arg(
        metavar="INT",
        help="tokens that a picture may have, of a system that chooses (LaVIT)",
        help_behavior_hint="(default: as many as it needs)",
    ),
]


def give_tokens(model: Any, system: str, tokens: int | None) -> None:
    """Lets every picture have exactly `tokens` tokens from now on; with none it is left to the model. Raises RebusError
    for a number that cannot be, and for a system whose pictures all have the same number."""
    if tokens is None:
        return
    if not hasattr(model.tokenizer, "choose"):
        raise RebusError(
            f"{system} gives every picture the same number of tokens, but --tokens {tokens} was asked for. "
            "Leave it out, or take a system that chooses, such as lavit:mini."
        )
    model.tokenizer.choose("topk", tokens)


def kept_over(image: Image, system: str) -> PIL.Image.Image:
    """The picture with the patches that are kept as they are, and the dropped ones faded to grey. Raises RebusError for a
    picture of which nothing is dropped or kept, since the system reads it otherwise."""
    patches = image.understood
    if not isinstance(patches, Patches) or image.pixels is None:
        raise RebusError(
            f"{system} chooses no patches, so there is no mask to show. Take a system that does, such as lavit:mini."
        )
    pixels_hw3 = np.asarray(to_rgb(image.pixels)).astype(np.float32)
    (height, width), side = pixels_hw3.shape[:2], round(len(patches.keep_N) ** 0.5)
    keep = patches.keep_N.numpy().reshape(side, side)
    # the tokenizer stretches a picture to its square, so that a patch is a rectangle of the picture's own shape
    rows_h, columns_w = np.arange(height) * side // height, np.arange(width) * side // width
    keep_hw1 = keep[rows_h[:, None], columns_w[None]][..., None]
    faded_hw3 = 0.2 * pixels_hw3.mean(-1, keepdims=True) + 0.8 * 150
    return PIL.Image.fromarray(np.where(keep_hw1, pixels_hw3, faded_hw3).astype(np.uint8))
