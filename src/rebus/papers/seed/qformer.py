"""The causal Q-Former: learned queries that look at an image and at one another, each only at those before it
(SEED section 3.1). Without causality it is BLIP-2's Q-Former, and the Reverse Q-Former of SEED's de-tokenizer.

A post-norm BERT in which queries and text share the self-attention and have feed-forwards of their own; only queries
look at the image. `QFormer` is the query half, `TextBranch` adds the text half, which only stage 1 needs.

Dimension key: I images · N queries · S image tokens · L text tokens · C width · V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.nn.attention import MLP, Attention, init_linears

FORBIDDEN = -10000.0
"""What BERT adds to a score that is not allowed. In float32 its weight is then exactly zero."""


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are SEED's (BERT-base, as in BLIP-2)."""

    queries: int = 32
    """Number of learned queries, which is the number of tokens of an image."""
    width: int = 768
    """Width of queries and text."""
    depth: int = 12
    """Number of layers."""
    heads: int = 12
    """Attention heads."""
    mlp_hidden: int = 3072
    """Hidden width of the feed-forwards."""
    source_width: int = 1408
    """Width of the image tokens that the queries look at."""
    cross_every: int = 2
    """Layers 0, this, twice this … look at the image."""
    causal: bool = True
    """Whether a query sees only itself and the queries before it. (The published code derives it from the count 32.)"""
    look_gain: float = 1.0
    """Factor on the first weights of queries and keys that look at the image. With 1 (BERT's start, fit for weights that
    are loaded over it) every query looks at everything alike, which training from nothing leaves only slowly."""
    dropout: float = 0.1
    """Dropout of embeddings, attention weights and residual branches while training."""
    eps: float = 1e-12
    """Epsilon of the layer norms (BERT's)."""


class FeedForward(nn.Module):
    """norm(x + mlp(x)): the second half of a post-norm layer."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.mlp = MLP(config.width, config.mlp_hidden)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """x_BLC → x_BLC."""
        return self.norm(x_BLC + self.dropout(self.mlp(x_BLC)))


class AddAttention(nn.Module):
    """norm(x + attention(x, source)): the first half of a post-norm layer."""

    def __init__(self, config: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, source_width=source_width, dropout=config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLC: Tensor, source_BSC: Tensor, mask: Tensor | None) -> Tensor:
        """x_BLC and what it looks at → x_BLC; `mask` is added to the scores."""
        return self.norm(x_BLC + self.dropout(self.attention(x_BLC, source_BSC, mask)))


class Layer(nn.Module):
    """Self-attention, in some layers a look at the image, and the feed-forward of the queries."""

    def __init__(self, config: QFormerConfig, *, looks: bool) -> None:
        super().__init__()
        self.self_attention = AddAttention(config, config.width)
        self.cross_attention = AddAttention(config, config.source_width) if looks else None
        self.feed_forward = FeedForward(config)

    def queries(self, x_INC: Tensor, source_ISC: Tensor, source_mask: Tensor | None) -> Tensor:
        """What happens to queries after self-attention."""
        if self.cross_attention is not None:
            x_INC = self.cross_attention(x_INC, source_ISC, source_mask)
        return self.feed_forward(x_INC)


class QFormer(nn.Module):
    """Learned queries and the layers that they go through."""

    def __init__(self, config: QFormerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            Layer(config, looks=number % config.cross_every == 0) for number in range(config.depth)
        )
        nn.init.trunc_normal_(self.query_tokens, std=0.02, generator=generator)
        init_linears(self, generator)
        for layer in self.stack():
            if layer.cross_attention is not None:
                look = layer.cross_attention.attention
                with torch.no_grad():
                    look.query.weight.mul_(config.look_gain)
                    look.key.weight.mul_(config.look_gain)

    def start(self, batch: int) -> Tensor:
        """The queries as they enter the first layer, x_INC for `batch` images: normalised, without positions."""
        return self.dropout(self.norm(self.query_tokens)).expand(batch, -1, -1)

    def stack(self) -> list[Layer]:
        """The layers, first to last."""
        return cast(list[Layer], list(self.layers))

    def forward(self, source_ISC: Tensor, source_mask_IS: Tensor | None = None) -> Tensor:
        """Image tokens → x_INC. `source_mask_IS` is true (or 1) where there is an image token and not padding."""
        x_INC = self.start(len(source_ISC))
        mask = causal_mask(x_INC.shape[1], x_INC) if self.config.causal else None
        source_mask = None if source_mask_IS is None else additive(source_mask_IS[:, None, None], x_INC)
        for layer in self.stack():
            x_INC = layer.self_attention(x_INC, x_INC, mask)
            x_INC = layer.queries(x_INC, source_ISC, source_mask)
        return x_INC


class TextBranch(nn.Module):
    """BERT's text half: embeddings, a feed-forward for each layer of `qformer`, and the head that predicts words.

    It does not own the Q-Former whose self-attention it shares: every method is handed it.
    """

    def __init__(
        self,
        config: QFormerConfig,
        vocabulary: int = 30523,
        positions: int = 512,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, config.width)
        self.position_embeddings = nn.Embedding(positions, config.width)
        self.feed_forwards = nn.ModuleList(FeedForward(config) for _ in range(config.depth))
        self.head = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width, eps=config.eps),
            nn.Linear(config.width, vocabulary),
        )
        init_linears(self, generator)
        for table in (self.word_embeddings, self.position_embeddings):
            nn.init.trunc_normal_(table.weight, std=0.02, generator=generator)

    def start(self, qformer: QFormer, ids_BL: Tensor) -> Tensor:
        """Word and position embeddings, normalised → x_BLC. Text and queries share the norm."""
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return qformer.dropout(qformer.norm(self.word_embeddings(ids_BL) + self.position_embeddings(positions_L)))

    def text(self, qformer: QFormer, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text alone, read in both directions → x_BLC. `mask_BL` is 1 at words and 0 at padding."""
        x_BLC = self.start(qformer, ids_BL)
        mask = additive(mask_BL[:, None, None], x_BLC)
        for layer, feed_forward in zip(qformer.stack(), self.feed_forwards, strict=True):
            x_BLC = feed_forward(layer.self_attention(x_BLC, x_BLC, mask))
        return x_BLC

    def joint(self, qformer: QFormer, source_ISC: Tensor, ids_IL: Tensor, mask: Tensor) -> Tensor:
        """Queries and text in one sequence, queries first → x_I(N+L)C; `mask` from `joint_mask` or `caption_mask`."""
        queries = qformer.config.queries
        x_INC = torch.cat([qformer.start(len(ids_IL)), self.start(qformer, ids_IL)], dim=1)
        for layer, feed_forward in zip(qformer.stack(), self.feed_forwards, strict=True):
            x_INC = layer.self_attention(x_INC, x_INC, mask)
            queries_INC, text_ILC = x_INC[:, :queries], x_INC[:, queries:]
            x_INC = torch.cat([layer.queries(queries_INC, source_ISC, None), feed_forward(text_ILC)], dim=1)
        return x_INC

    def caption_logits(self, qformer: QFormer, source_ISC: Tensor, ids_IL: Tensor, mask_IL: Tensor) -> Tensor:
        """Logits_ILV of the next word, from all queries and the words so far. `ids_IL` begin with the [DEC] token."""
        mask = caption_mask(qformer.config.queries, mask_IL, source_ISC)
        x_INC = self.joint(qformer, source_ISC, ids_IL, mask)
        return self.head(x_INC[:, qformer.config.queries :])


# ------------------------------------------------------------------------------------------------ masks


def additive(allowed: Tensor, like: Tensor) -> Tensor:
    """1 or true (may look) → 0, else → FORBIDDEN, in the dtype of `like`."""
    return (1.0 - allowed.to(like.dtype)) * FORBIDDEN


def causal_mask(queries: int, like: Tensor) -> Tensor:
    """[1, 1, N, N]: query i sees queries 0..i."""
    return additive(torch.ones(1, 1, queries, queries, device=like.device).tril(), like)


def joint_mask(queries: int, text_mask_IL: Tensor, like: Tensor) -> Tensor:
    """[I, 1, N+L, N+L]: query i sees queries 0..i and all text; text sees everything (image-text matching)."""
    total = queries + text_mask_IL.shape[1]
    allowed = torch.ones(total, total, device=like.device)
    allowed[:queries, :queries] = allowed[:queries, :queries].tril()
    return additive(allowed * F.pad(text_mask_IL, (queries, 0), value=1)[:, None, None], like)


def caption_mask(queries: int, text_mask_IL: Tensor, like: Tensor) -> Tensor:
    """[I, 1, N+L, N+L]: queries see queries 0..i and no text; a word sees all queries and the words up to itself."""
    total = queries + text_mask_IL.shape[1]
    allowed = torch.ones(total, total, device=like.device).tril()
    return additive(allowed * F.pad(text_mask_IL, (queries, 0), value=1)[:, None, None], like)
