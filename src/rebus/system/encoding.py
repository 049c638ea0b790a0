"""Images become tokens before documents become sequences, in training as in chat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rebus.document import Document, Image, Role
from rebus.visual import Codes, Purpose, VisualTokenizer

PURPOSES: tuple[Purpose, ...] = ("understanding", "generation")


def encode(
    tokenizer: VisualTokenizer,
    documents: Sequence[Document],
    *,
    replies: Purpose,
    generators: Sequence[torch.Generator] | None = None,
) -> list[Document]:
    """The documents with every image encoded for what its role asks: a user's for understanding, an assistant's for
    `replies`: generation when replies are learned, understanding when they lie in the past. Past codes are kept as they
    were written. `generators` are one for each image, in reading order.

    Raises RebusError for an image that has neither the tokens nor pixels.
    """
    flat = [
        (image, replies if message.role == "assistant" else "understanding", message.role)
        for document in documents
        for message in document.messages
        for image in message.images
    ]
    done: dict[int, Image] = {}
    for purpose in PURPOSES:
        places = [
            place
            for place, (image, wanted, role) in enumerate(flat)
            if wanted == purpose and not (role == "assistant" and isinstance(image.generated, Codes))
        ]
        if places:
            chosen = None if generators is None else [generators[place] for place in places]
            encoded = tokenizer.encode([flat[place][0] for place in places], {purpose}, generators=chosen)
            done |= dict(zip(places, encoded, strict=True))
    places_left = iter(range(len(flat)))

    def change(image: Image, role: Role) -> Image:
        return done.get(next(places_left), image)

    return [document.map_images(change) for document in documents]
