"""The arms of the study of LaVIT's tokens: ways from the vision encoder's patches to about as many tokens each.

Choices: learned, at random, on a grid, by norm. Mergers: whole, without attention to the dropped patches, none. Encoders that
choose nothing: pooled patches, learned queries. And the learned choice with a codebook.

Dimension key: I images · N patches · T tokens of all images · C width · E code width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.mini.llm import BASE_LLM
from rebus.nn.attention import Block, init_linears, init_transformer
from rebus.nn.quantize import UnitQuantizer
from rebus.papers.lavit.decoder import DecoderBlock, DecoderConfig
from rebus.papers.lavit.merger import Merger, MergerBlock, MergerConfig
from rebus.papers.lavit.reconstruction import Reconstruction, ReconstructionConfig
from rebus.papers.lavit.selector import keep_best
from rebus.papers.lavit.variants import MINI_RECONSTRUCTION
from rebus.train import Trainable

KINDS: Mapping[str, str] = {
    "learned": "learned choice, merger (LaVIT)",
    "random": "random patches, merger",
    "grid": "patches on a grid, merger",
    "norm": "patches of largest norm, merger",
    "no_cross": "learned choice, merger that does not see the dropped patches",
    "no_merger": "learned choice, no merger",
    "pooled": "pooled patches, transformer of equal size",
    "queries": "learned queries, resampler of equal size",
    "codes": "learned choice, merger, codebook",
}
DECAY = 0.97
"""Of the running means that a codebook follows: a run of some hundred steps has no time for the usual 0.99."""
LEARNED = ("learned", "no_cross", "no_merger", "codes")
"""Arms whose selector is trained."""


@dataclass(frozen=True)
class Config:
    """Budget of an arm, equal for all."""

    loss: ReconstructionConfig = replace(MINI_RECONSTRUCTION, draft=None, draft_weight=0.0)
    """Tokenizer, decoder and penalty of the learned choice."""
    rows: int = 4
    """Tokens are `rows` x `columns` where they lie on a grid, and as many elsewhere; learned choices have them as mean."""
    columns: int = 5
    """See `rows`."""
    steps: int = 500
    """Optimiser steps of an arm."""
    batch: int = 64
    """Pictures of a step."""
    minutes: float = 6.0
    """Longest training of an arm. Fewer steps are taken by all arms where the slowest would need longer for `steps`."""
    lr: float = 1e-3
    """Peak learning rate."""
    selector_lr: float = 3e-3
    """Peak learning rate of a selector."""
    codebook_from: float = 0.5
    """Share of the steps after which the arm with a codebook begins to look up."""
    n: int = 1000
    """Pictures of split `val` that are measured."""
    language: bool = False
    """Whether the three most telling arms also have a language model read their tokens (the first seed alone)."""
    language_steps: int = 600
    """Its steps, `language_batch` captions each."""
    language_batch: int = 16
    """Captions of a step."""
    language_minutes: float = 25.0
    """Longest training of a language model."""
    language_lr: float = 1e-3
    """Peak learning rate of its adapters and of the layer that leads into it."""
    language_n: int = 200
    """Pictures of split `val` that it is asked about."""
    base: str | Mapping[str, Any] = BASE_LLM
    """The language model."""

    @property
    def budget(self) -> int:
        """Tokens of a picture."""
        return self.rows * self.columns


class PooledEncoder(nn.Module):
    """Patches averaged over the cells of a grid, then a transformer over the cells with as many parameters as the merger."""

    def __init__(self, config: MergerConfig, grid: int, cells: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.grid, self.cells = grid, cells
        width = config.width
        # a merger's block has two attentions; without the second one, blocks of 4 to 3 are of equal size
        own, one = (2 * 4 * width + 2 * config.mlp_hidden) * config.depth, 4 * width + 2 * config.mlp_hidden
        blocks = (Block(width, config.heads, config.mlp_hidden) for _ in range(round(own / one)))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        init_transformer(self.blocks, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → tokens [I, cells, C]."""
        x_IChw = rearrange(x_INC, "i (h w) c -> i c h w", h=self.grid)
        x_INC = rearrange(F.adaptive_avg_pool2d(x_IChw, self.cells), "i c h w -> i (h w) c")
        for block in self.blocks:
            x_INC = block(x_INC)
        return self.norm(x_INC)


class QueryEncoder(nn.Module):
    """Learned queries that look at each other and at all patches; a block is as large as a merger's."""

    def __init__(self, config: MergerConfig, count: int, generator: torch.Generator) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, count, config.width))
        nn.init.trunc_normal_(self.queries, std=0.02, generator=generator)
        sizes = DecoderConfig(width=config.width, heads=config.heads, mlp_hidden=config.mlp_hidden)
        self.source_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(DecoderBlock(sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        init_linears(self, generator)

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → tokens [I, count, C]."""
        all_IN = torch.ones(x_INC.shape[:2], dtype=torch.bool, device=x_INC.device)
        source_TC = self.source_norm(x_INC).flatten(0, 1)
        queries_INC = self.queries.expand(len(x_INC), -1, -1)
        for block in self.blocks:
            queries_INC = block(queries_INC, source_TC, all_IN)
        return self.norm(queries_INC)


class TokensArm(Reconstruction):
    """One way from patches to tokens, with the decoder that rebuilds the patches. It counts its steps."""

    done: Tensor

    def __init__(self, kind: str, config: Config, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        loss, patches = config.loss, config.loss.decoder.patches
        tokenizer = loss.tokenizer
        if not 1 <= config.budget <= patches:
            raise RebusError(
                f"A picture has {patches} patches, but {config.rows} x {config.columns} tokens were asked for. Ask for fewer."
            )
        quantizer = None
        if kind == "codes":
            quantizer = UnitQuantizer(tokenizer.codebook_size, tokenizer.code_width, decay=DECAY, generator=generator)
        loss = replace(loss, share=config.budget / patches, share_of="batch", gradient="decoder")
        super().__init__(loss, quantizer=quantizer, selector_learns=kind in LEARNED, generator=generator)
        self.kind, self.own, self.generator = kind, config, generator
        self.switch = round(config.codebook_from * config.steps)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        merger = tokenizer.merger
        if kind == "no_merger":
            self.tokenizer.merger = Merger(replace(merger, depth=0), generator)
        if kind == "no_cross":
            for block in self.tokenizer.merger.blocks:
                assert isinstance(block, MergerBlock)
                nn.init.zeros_(block.cross.proj.weight)
                nn.init.zeros_(block.cross.proj.bias)
        self.encoder: PooledEncoder | QueryEncoder | None = None
        if kind == "pooled":
            cells = (config.rows, config.columns)
            self.encoder = PooledEncoder(merger, tokenizer.vision.grid, cells, generator)
        if kind == "queries":
            self.encoder = QueryEncoder(merger, config.budget, generator)

    def choice(self, x_INC: Tensor, generator: torch.Generator, noise: float) -> Tensor:
        """keep_IN as numbers: learned, or by this arm's rule."""
        images, patches = x_INC.shape[:2]
        budget = self.own.budget
        match self.kind:
            case "random":
                scores_IN = torch.rand(images, patches, generator=generator).to(x_INC)
            case "norm":
                scores_IN = x_INC.norm(dim=-1)
            case "grid":
                return on_grid(self.config.tokenizer.vision.grid, self.own.rows, self.own.columns).expand(images, -1)
            case "pooled" | "queries":
                return F.one_hot(torch.zeros(images, dtype=torch.long), patches).to(x_INC)  # nothing is chosen
            case _:
                return super().choice(x_INC, generator, noise)
        return keep_best(torch.stack([scores_IN, -scores_IN], -1), budget).to(x_INC)

    def rebuild(self, x_INC: Tensor, keep_IN: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """As the parent's; an encoder that chooses nothing takes the merger's place."""
        if self.encoder is None:
            return super().rebuild(x_INC, keep_IN)
        tokens_INC = self.encoder(x_INC)
        z_TE, parts = self.coded(self.tokenizer.codes_before(tokens_INC.flatten(0, 1)))
        return self.decoder(z_TE, torch.full((len(x_INC),), tokens_INC.shape[1], device=x_INC.device)), parts

    def coded(self, z_TE: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """As the parent's, once codes are looked up."""
        return super().coded(z_TE) if int(self.done) > self.switch else (z_TE, {})

    @torch.no_grad()
    def begin_codes(self, x_INC: Tensor) -> None:
        """The codebook's rows become k-means centres of the vectors of features, as they are now."""
        assert isinstance(self.tokenizer.quantizer, UnitQuantizer)
        keep_IN = self.choice(x_INC, self.generator, 0.0) > 0
        z_TE = self.tokenizer.codes_before(self.tokenizer.merger.kept(x_INC, keep_IN))
        self.tokenizer.quantizer.start_from(z_TE.float(), self.generator)

    @torch.no_grad()
    def rows(self, x_INC: Tensor, keep_IN: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of all pictures, end to end [T, C], and how many each has."""
        if self.encoder is not None:
            return self.encoder(x_INC).flatten(0, 1), torch.full((len(x_INC),), self.own.budget)
        return self.tokenizer.merger.kept(x_INC, keep_IN), keep_IN.sum(1)

    @torch.no_grad()
    def tokens(self, x_INC: Tensor, keep_IN: Tensor) -> tuple[Tensor, Tensor]:
        """Of each picture the mean of its tokens [I, C], and of what is left of them at a code's width [I, E]."""
        tokens_TC, lengths_I = self.rows(x_INC, keep_IN)
        z_TE, _ = self.coded(self.tokenizer.codes_before(tokens_TC))
        return means(tokens_TC, lengths_I), means(z_TE, lengths_I)

    def learned(self) -> list[Trainable]:
        """What this arm trains."""
        lr, parts = self.own.lr, ["tokenizer.to_code.*", "detokenizer.*"]
        if self.encoder is not None:
            return [Trainable(name, lr) for name in ("encoder.*", *parts)]
        parts += ["tokenizer.merger.*"]
        blind = [Trainable("tokenizer.merger.*.cross.*", 0.0)] if self.kind == "no_cross" else []
        selector = [Trainable("tokenizer.selector.*", self.own.selector_lr)] if self.kind in LEARNED else []
        return blind + selector + [Trainable(name, lr) for name in parts]


def means(x_TC: Tensor, lengths_I: Tensor) -> Tensor:
    """The mean row of each picture."""
    return torch.stack([rows.float().mean(0) for rows in x_TC.split(lengths_I.tolist())])


def on_grid(side: int, rows: int, columns: int) -> Tensor:
    """keep_1N of `rows` x `columns` patches spread evenly over a square of `side` patches. Raises RebusError for more rows
    or columns than there are patches."""
    if max(rows, columns) > side:
        raise RebusError(f"{rows} x {columns} patches do not fit on {side} x {side}. Ask for fewer rows or columns.")
    keep_hw = torch.zeros(side, side)
    across, down = ((torch.arange(n) * side + side // 2) // n for n in (columns, rows))
    keep_hw[down[:, None], across[None]] = 1
    return keep_hw.view(1, -1)
