"""What the frozen parts say of every picture of the bank, computed once and read from arrays.

Dimension key: I pictures of a batch · N tokens (class token first) · C width · D width of the image embedding ·
c latent channels · h w latent sides
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rebus.diffusion.vae import LatentCodec
from rebus.mini.bank import Bank, cached, caption_vectors, in_batches, load_bank
from rebus.mini.named import load_named
from rebus.mini.vae import load_codec
from rebus.mini.vision import MiniVision, load_vision

Array = Literal["latents", "tokens", "embeddings", "captions"]


class Frozen:
    """Arrays of the bank under `work`, whose rows are its pictures:

    - `latents` [c, h, w], standardised, of mini-vae;
    - `tokens` [N, C] and `embeddings` [D] of mini-vit;
    - `captions` [384], sentence vectors.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.bank = cache(lambda split: load_bank(work, split))
        self.array = cache(self._array)

    @cached_property
    def codec(self) -> LatentCodec:
        """The latent codec, from `work/mini.vae`."""
        return load_codec(self.work / "mini.vae" / "weights.safetensors")

    @cached_property
    def vision(self) -> MiniVision:
        """The vision encoder, from `work/mini.vision`."""
        return load_vision(self.work / "mini.vision" / "weights.safetensors")

    @cached_property
    def vision_print(self) -> str:
        """Fingerprint of the vision encoder."""
        return fingerprint(self.vision)

    def derive(self, name: str, split: str, run: Callable[[np.ndarray], Tensor], *, of: str) -> np.ndarray:
        """An array of your own: `run(indices)` over the whole bank, the first time, and again when `of`, the `fingerprint` of
        what it is made with, is another."""
        file = self.work / "cache" / f"{name}.{split}.npy"
        return cached(file, lambda: in_batches(run, len(self.bank(split))), of=of)

    def _array(self, name: Array, split: str) -> np.ndarray:
        bank: Bank = self.bank(split)
        match name:
            case "latents":
                return self.derive(name, split, lambda i: self.codec.encode(bank.pixels(i)), of=fingerprint(self.codec))
            case "tokens":
                return self.derive(name, split, lambda i: self.vision.vit(bank.pixels(i)), of=self.vision_print)
            case "embeddings":
                run = lambda i: self.vision.embed(*self.rows(split, i, "tokens"))  # noqa: E731
                return self.derive(name, split, run, of=self.vision_print)
            case "captions":
                return caption_vectors(self.work, bank, split)

    def rows(self, split: str, i: np.ndarray, *names: Array) -> list[Tensor]:
        """The rows `i` of the named arrays, float32."""
        return [take(self.array(name, split), i) for name in names]

    def states(self, split: str, i: np.ndarray) -> Tensor:
        """What the mini denoiser is told of the pictures `i` by attention: the vision encoder's patch features behind its
        norm, [I, N − 1, C]."""
        with torch.no_grad():
            return self.vision.norm(take(self.array("tokens", split), i))[:, 1:]

    def singles(self, split: str, n: int) -> np.ndarray:
        """Indices of the first `n` pictures that show one thing."""
        return np.flatnonzero(np.array(self.bank(split).kinds) == "single")[:n]

    def caption_ids(self, split: str, i: np.ndarray) -> Tensor:
        """A number for each caption, equal where the captions are."""
        return torch.from_numpy(np.unique(np.array(self.bank(split).captions)[i], return_inverse=True)[1])


def named_tokens(data: Frozen, split: str, *, copies: int = 4) -> tuple[np.ndarray, Tensor, list[str]]:
    """What the vision encoder says of the split's pictures of one thing, float16 [I, S, C], as they are and then moved, `copies`
    times in all; the name of each, a place in the list of names, which are training's. Computed once."""
    named = load_named(data.work, split)
    generator = torch.Generator().manual_seed(0)
    config = data.vision.vit.config
    if not len(named):
        return np.zeros((0, config.grid**2 + 1, config.width), np.float16), named.name_N, named.names
    made_of = f"{data.vision_print} {copies} of {len(named)}"
    file = data.work / "cache" / f"named_tokens.{split}.npy"
    run = lambda i: data.vision.vit(named.copies(i, generator))  # noqa: E731
    tokens = cached(file, lambda: in_batches(run, copies * len(named)), of=made_of)
    return tokens, named.name_N.repeat(copies), named.names


def fingerprint(*parts: nn.Module | Tensor | str) -> str:
    """A name for weights that no others have: sha256, in hex, of the names, shapes and numbers of all of them in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        tensors = {"": part} if isinstance(part, Tensor) else part.state_dict()
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def take(array: np.ndarray, i: np.ndarray) -> Tensor:
    """Rows of an array as a float32 tensor of its own."""
    return torch.from_numpy(np.array(array[i])).float()
