"""What SEED's tokenizer says of the pictures of the mini bank, computed once and read from arrays.

Dimension key: I images · N queries · C width · E code width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rebus.mini.bank import cached, in_batches
from rebus.mini.frozen import Frozen, fingerprint, named_tokens, take
from rebus.mini.named import load_named
from rebus.mini.vision import MiniVision
from rebus.nn.discriminant import discriminant
from rebus.papers.seed.tokenizer import SeedTokenizer


def read_vision(tokenizer: SeedTokenizer, vision: MiniVision) -> None:
    """Gives a tokenizer the mini vision encoder, and where its codes start from what that reads of patches, this too."""
    tokenizer.visual_encoder.load_state_dict(vision.vit.state_dict())
    if tokenizer.code_start is not None:
        own = vision.state_dict()
        tokenizer.code_start.load_state_dict({name: own[name] for name in tokenizer.code_start.state_dict()})


def causal_embeddings(data: Frozen, split: str, tokenizer: SeedTokenizer) -> np.ndarray:
    """What the frozen Q-Former of stage 1 says of every picture of the bank, [N, C] each; computed once."""

    def run(i: np.ndarray) -> Tensor:
        return tokenizer.causal_embeddings(take(data.array("tokens", split), i))

    return data.derive("seed_causal", split, run, of=_reader(data, tokenizer))


def code_starts(data: Frozen, split: str, i: np.ndarray, tokenizer: SeedTokenizer) -> Tensor | None:
    """Where the codes of the pictures `i` start, [I, E]; none where nothing but the Q-Former makes them."""
    if tokenizer.code_start is None:
        return None

    def run(i: np.ndarray) -> Tensor:
        start = tokenizer.start(take(data.array("tokens", split), i))
        assert start is not None  # such is the tokenizer
        return start

    return take(data.derive("seed_starts", split, run, of=fingerprint(tokenizer.code_start, data.vision_print)), i)


def bank_codes(data: Frozen, split: str, tokenizer: SeedTokenizer) -> np.ndarray:
    """The codes of every picture of the bank, int64 [N] each; computed once."""
    causal = causal_embeddings(data, split, tokenizer)

    def run(i: np.ndarray) -> Tensor:
        start_IE = code_starts(data, split, i, tokenizer)
        return tokenizer.quantizer.encode(tokenizer.codes_before(take(causal, i), start_IE))

    return data.derive(
        "seed_codes", split, run, of=fingerprint(tokenizer.quantizer, tokenizer.to_code, _reader(data, tokenizer))
    )


def named_codes(
    data: Frozen, tokenizer: SeedTokenizer, split: str = "train", *, copies: int = 4
) -> tuple[Tensor, Tensor, list[str]]:
    """Codes [I, N] of the split's pictures of one thing, as they are and then moved, `copies` times in all; the name of each,
    a place in the list of names, which are training's. Computed once."""
    named = load_named(data.work, split)
    generator = torch.Generator().manual_seed(0)

    def run(i: np.ndarray) -> Tensor:
        return tokenizer.ids(named.copies(i, generator))

    parts = (tokenizer.quantizer, tokenizer.to_code, _reader(data, tokenizer), f"{copies} of {len(named)}")
    if not len(named):
        return torch.zeros(0, tokenizer.config.qformer.queries, dtype=torch.int64), named.name_N, named.names
    file = data.work / "cache" / f"seed_named.{split}.npy"
    ids = cached(file, lambda: in_batches(run, copies * len(named)), of=fingerprint(*parts))
    return torch.from_numpy(np.array(ids)), named.name_N.repeat(copies), named.names


def meaning_directions(data: Frozen, tokenizer: SeedTokenizer, directions: int) -> Tensor:
    """The `directions` [E, P] in which what is looked up at the first place differs between names, of the trained pictures of one thing."""
    tokens, name_I, _ = named_tokens(data, "train")
    count = len(load_named(data.work, "train"))  # as they are, without the moved ones

    def run(i: np.ndarray) -> Tensor:
        x_ISC = take(tokens, i)
        return tokenizer.codes_before(tokenizer.causal_embeddings(x_ISC), tokenizer.start(x_ISC))[:, 0]

    z_IE = torch.from_numpy(in_batches(run, count)).float()
    return discriminant(z_IE, name_I[:count], directions)


def _reader(data: Frozen, tokenizer: SeedTokenizer) -> str:
    """Fingerprint of what makes the causal embeddings."""
    return fingerprint(tokenizer.vision_norm, tokenizer.qformer, data.vision_print)


def nested_dropout(z_INE: Tensor, share: float) -> Tensor:
    """Running sums of entries of which `share` of the pictures end early: from a random place on, the sum stays as it is.
    So the way back to a picture learns to do with the first codes, and with last ones that say little."""
    images, places = z_INE.shape[:2]
    last_I1 = torch.randint(places, (images, 1), device=z_INE.device)
    last_I1 = torch.where(torch.rand_like(last_I1, dtype=torch.float32) < share, last_I1, places - 1)
    kept_IN = torch.minimum(torch.arange(places, device=z_INE.device)[None], last_I1)
    return z_INE.gather(1, kept_IN[..., None].expand_as(z_INE))
