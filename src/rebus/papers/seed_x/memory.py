"""Features of pictures that were seen before: the vision encoder is frozen in all of SEED-X's language stages, so what it
said once of a picture it would say again.

Dimension key: none; tensors are made by the tokenizer
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch

from rebus.document import Image
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.visual import Features, Purpose

Key = tuple[bytes, Purpose, tuple]


class Memory:
    """A tokenizer's features of the last `most` pictures, held in half the tokenizer's numbers' size (float16) and told
    apart by their pixels, the purpose and the grids that they are cut by."""

    def __init__(self, tokenizer: SeedXTokenizer, most: int) -> None:
        self.tokenizer, self.most = tokenizer, most
        self.held: OrderedDict[Key, Features] = OrderedDict()
        self.found = self.asked = 0

    def encode(self, images: Sequence[Image], purpose: Purpose, grids: tuple) -> list[Image]:
        """The images with features for `purpose`, cut by `grids` where they are to be read. Errors as the tokenizer's."""
        if any(image.pixels is None for image in images):
            return self.tokenizer.encode(images, {purpose})  # they have tokens, or the tokenizer says what they lack
        keys = [_key(image, purpose, grids) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.held}
        if new:
            tokenizer, before = self.tokenizer, self.tokenizer.grids
            tokenizer.grids = grids
            try:
                made = tokenizer.encode([Image(image.pixels) for image in new.values()], {purpose})
            finally:
                tokenizer.grids = before
            for key, image in zip(new, made, strict=True):
                features = image.understood if purpose == "understanding" else image.generated
                assert isinstance(features, Features)
                self.held[key] = Features(features.x_WNC.half(), features.source, features.position_W2)
        self.asked += len(keys)
        self.found += len(keys) - len(new)
        done = []
        for key, image in zip(keys, images, strict=True):
            self.held.move_to_end(key)
            held = self.held[key]
            features = Features(held.x_WNC.to(torch.float32), held.source, held.position_W2)
            field = "understood" if purpose == "understanding" else "generated"
            done.append(image.with_tokens(**{field: features}))
        while len(self.held) > self.most:
            self.held.popitem(last=False)
        return done


def _key(image: Image, purpose: Purpose, grids: tuple) -> Key:
    pixels = image.pixels
    assert pixels is not None
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=12)
    digest.update(repr((pixels.size, pixels.mode)).encode())
    return digest.digest(), purpose, grids if purpose == "understanding" else ()
