"""LaVIT's decoder: the codes of an image → its patch features, as the vision encoder gave them (section 3.1), and the two
heads that make of these what a latent diffusion model is told.

The decoder is not told where the kept patches lay: position is the order of the codes alone.

Dimension key: I images · N M patches · T codes of all images · L codes of the longest image · E code width · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.attention import MLP, Attention, SelfAttention, attend, init_linears
from rebus.nn.pooled_head import PooledHead
from rebus.papers.lavit.merger import softmax_over
from rebus.papers.lavit.rows import slots, spread
from rebus.visual import Codes, VisualTokens


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the published ones."""

    patches: int = 256
    """Patches of an image, and the most codes that one may have."""
    code_width: int = 32
    """Width of a codebook entry."""
    width: int = 1408
    """Width of the patch features."""
    depth: int = 12
    """Blocks."""
    heads: int = 16
    """Attention heads."""
    mlp_hidden: int = 6144
    """Hidden width of the feed-forward."""
    eps: float = 1e-5
    """Epsilon of the layer norms."""


class DecoderBlock(nn.Module):
    """Queries look at each other, then at the codes, then think."""

    entries = ("weighed",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.heads, config.eps
        self.norm0 = nn.LayerNorm(width, eps=eps)
        self.self_attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.mlp_hidden)

    def to_codes(self, x_INC: Tensor, codes_TC: Tensor, slots_IL: Tensor) -> Tensor:
        """What attention to the codes gives, of the normalised queries; keys and values of real codes only."""
        k_ILC, v_ILC = (spread(map_(codes_TC), slots_IL) for map_ in (self.cross.key, self.cross.value))
        seen_I11L = slots_IL[:, None, None]
        return self.cross.proj(attend(self.cross.query(x_INC), k_ILC, v_ILC, self.cross.heads, seen_I11L))

    def weighed(self, x_INC: Tensor, codes_IMC: Tensor, keep_IM: Tensor) -> Tensor:
        """As `forward`, of codes at all places, of which `keep_IM` (0 or 1) says which there are; its gradient flows."""
        x_INC = x_INC + self.self_attention(self.norm0(x_INC))
        cross, heads = self.cross, self.cross.heads
        split = (cross.query(self.norm1(x_INC)), cross.key(codes_IMC), cross.value(codes_IMC))
        q, k, v = (rearrange(x, "i n (h e) -> i h n e", h=heads) for x in split)
        allow_INM = keep_IM[:, None].expand(-1, x_INC.shape[1], -1)
        weights = softmax_over((q * q.shape[-1] ** -0.5) @ k.mT, allow_INM, "masked")
        x_INC = x_INC + cross.proj(rearrange(weights.to(v.dtype) @ v, "i h n e -> i n (h e)"))
        return x_INC + self.mlp(self.norm2(x_INC))

    def forward(self, x_INC: Tensor, codes_TC: Tensor, slots_IL: Tensor) -> Tensor:
        """x_INC → x_INC; the codes stay as they are."""
        x_INC = x_INC + self.self_attention(self.norm0(x_INC))
        x_INC = x_INC + self.to_codes(self.norm1(x_INC), codes_TC, slots_IL)
        return x_INC + self.mlp(self.norm2(x_INC))


class Decoder(nn.Module):
    """Codebook entries of several images, end to end → patch features of each."""

    def __init__(self, config: DecoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.in_proj = nn.Linear(config.code_width, width)
        self.positions = nn.Parameter(torch.zeros(1, config.patches, width))
        self.queries = nn.Parameter(torch.zeros(1, config.patches, width))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        init_linears(self, generator, std=None)
        # Keys and values come of a code and its position as they are, without a norm before them. A code has length 1; with
        # weights of 0.02 all keys would be alike and all values next to nothing, and long would pass before the decoder
        # reads codes at all. The published class begins positions and queries as zeros, from which queries that are
        # all alike would never part.
        nn.init.normal_(self.in_proj.weight, generator=generator)
        nn.init.trunc_normal_(self.positions, std=0.5, generator=generator)
        nn.init.trunc_normal_(self.queries, std=0.02, generator=generator)

    def place(self, z_TE: Tensor, lengths_I: Tensor) -> tuple[Tensor, Tensor]:
        """Entries → packed codes_TC with their positions, and the slots_IL that they take.

        An image without codes, which nothing here writes, gets the bare positions of the longest image, as in the
        published code. Raises RebusError for more codes than there are positions, or lengths that do not add up.
        """
        most, longest = self.config.patches, int(lengths_I.max())
        if longest > most or int(lengths_I.sum()) != len(z_TE):
            raise RebusError(
                f"An image has at most {most} codes, and lengths count the codes that are given, but the longest of "
                f"{len(lengths_I)} images has {longest}, all have {int(lengths_I.sum())}, and {len(z_TE)} were given. "
                "Check how the codes were packed."
            )
        x_ILC = spread(self.in_proj(z_TE), slots(lengths_I)) + self.positions[:, :longest]
        slots_IL = slots(torch.where(lengths_I > 0, lengths_I, longest))
        return x_ILC[slots_IL], slots_IL

    def forward(self, z_TE: Tensor, lengths_I: Tensor) -> Tensor:
        """Entries of all images, image by image, and how many each has → features x_INC. Raises as `place` does."""
        codes_TC, slots_IL = self.place(z_TE, lengths_I)
        x_INC = self.queries.expand(len(lengths_I), -1, -1)
        for block in self.blocks:
            x_INC = block(x_INC, codes_TC, slots_IL)
        return self.head(self.norm(x_INC))

    def weighed(self, z_IME: Tensor, keep_IM: Tensor) -> Tensor:
        """As `forward`, of entries at all M patches and a mask of 0 and 1 that may carry a gradient: for training only.
        What is not kept is computed and weighs nothing."""
        order_IM = (keep_IM.detach().cumsum(1).long() - 1).clamp(min=0)
        codes_IMC = self.in_proj(z_IME) + self.positions[0][order_IM]
        x_INC = self.queries.expand(len(z_IME), -1, -1)
        for block in self.blocks:
            assert isinstance(block, DecoderBlock)
            x_INC = block.weighed(x_INC, codes_IMC, keep_IM)
        return self.head(self.norm(x_INC))


def decode_codes(decoder: Decoder, codebook_KE: Tensor, tokens: Sequence[VisualTokens], source: str) -> Tensor:
    """Codes of several images → features x_INC as the vision encoder might have given them.

    Raises RebusError for tokens that are not codes of the tokenizer that `source` names, for an image without codes or
    with more than it has patches, and for codes out of range.
    """
    rows = code_rows(tokens, source, most=decoder.config.patches, size=len(codebook_KE))
    lengths_I = torch.tensor([len(ids_N) for ids_N in rows], device=codebook_KE.device)
    z_TE = F.embedding(torch.cat(rows).to(codebook_KE.device), codebook_KE)
    return decoder(z_TE, lengths_I)


def code_rows(tokens: Sequence[VisualTokens], source: str, *, most: int, size: int) -> list[Tensor]:
    """The ids_N of each image, 1 to `most` ids below `size`. Raises RebusError as `decode_codes` does."""
    rows = []
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, Codes):
            raise RebusError(
                f"LaVIT draws from codes, but image {number} of {len(tokens)} is {type(token).__name__}. "
                "Tokenize it with this model's tokenizer, for generation."
            )
        if token.source != source:
            raise RebusError(
                f"Image {number} of {len(tokens)} holds codes of {token.source!r}, but this detokenizer belongs to "
                f"{source!r}. Tokenize the image again with this model."
            )
        low, high = (int(token.ids_N.min()), int(token.ids_N.max())) if len(token.ids_N) else (0, 0)
        if not 1 <= len(token.ids_N) <= most or low < 0 or high >= size:
            raise RebusError(
                f"LaVIT writes an image as 1 to {most} codes of 0 to {size - 1}, but image {number} has "
                f"{len(token.ids_N)} from {low} to {high}. Check which tokenizer wrote them."
            )
        rows.append(token.ids_N)
    return rows


class TokenHead(nn.Module):
    """Features → the tokens that a UNet of Stable Diffusion 1.5's kind reads."""

    def __init__(self, width: int, tokens: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.proj = nn.Linear(width, tokens)
        init_linears(self, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → tokens [I, N, tokens]."""
        return self.proj(x_INC)


def pooled_head(config: DecoderConfig, widths: tuple[int, int], generator: torch.Generator | None = None) -> PooledHead:
    """The head for SDXL; its vector is as wide as the second half of its tokens."""
    head = PooledHead(config.patches, config.width, config.heads, widths, widths[1])
    init_linears(head, generator)
    nn.init.trunc_normal_(head.pool.positions, std=config.width**-0.5, generator=generator)
    return head
