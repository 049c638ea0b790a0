"""Does it help that LaVIT chooses patches and merges the others into them? At equal tokens, parameters, steps and data
(2309.04669 section 3.1, and what its public reviewers asked).

Every arm turns the frozen vision encoder's patches into about as many tokens, squeezes each to the width of a code, and the
same decoder rebuilds all patches. Choices: learned, at random, on a grid, by norm. Mergers: whole, without attention to the
dropped patches, none. Encoders that choose nothing: pooled patches, learned queries. And the learned choice with a codebook.

    rebus study lavit-tokens --work state --out state/study-lavit-tokens

Dimension key: I images · N patches · T tokens of all images · C width · E code width
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.nn.attention import Block, init_linears, init_transformer
from rebus.nn.quantize import UnitQuantizer
from rebus.papers.lavit.decoder import DecoderBlock, DecoderConfig
from rebus.papers.lavit.merger import Merger, MergerBlock, MergerConfig
from rebus.papers.lavit.reconstruction import Reconstruction, ReconstructionConfig
from rebus.papers.lavit.selector import KEEP, keep_best
from rebus.papers.lavit.variants import MINI_RECONSTRUCTION
from rebus.studies.arms import Arm, Measure, Record, Report, run_arms, write_study
from rebus.train import Losses, Optim, Stage, Trainable, fit

MEASURES = (
    Measure("cosine", "patch features rebuilt, cosine"),
    Measure("at_budget", "the same with exactly the budget"),
    Measure("named", "nearest picture has the same name, by tokens"),
    Measure("named_code", "the same, by what is left at a code's width"),
    Measure("tokens", "tokens of a picture", ""),
    Measure("deviation", "their deviation between pictures", ""),
    Measure("complexity", "correlation of tokens with PNG bytes", ""),
    Measure("decided", "share of the length's variance that is the picture's, not the draw's", ""),
)

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
    lr: float = 1e-3
    """Peak learning rate."""
    codebook_from: float = 0.5
    """Share of the steps after which the arm with a codebook begins to look up."""
    n: int = 1000
    """Pictures of split `val` that are measured."""

    @property
    def budget(self) -> int:
        """Tokens of a picture."""
        return self.rows * self.columns


# ------------------------------------------------------------------------------------------------ the arms


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
            quantizer = UnitQuantizer(tokenizer.codebook_size, tokenizer.code_width, generator=generator)
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
    def tokens(self, x_INC: Tensor, keep_IN: Tensor) -> tuple[Tensor, Tensor]:
        """Of each picture the mean of its tokens [I, C], and of what is left of them at a code's width [I, E]."""
        if self.encoder is not None:
            tokens_TC = self.encoder(x_INC).flatten(0, 1)
            lengths_I = torch.full((len(x_INC),), self.own.budget)
        else:
            tokens_TC, lengths_I = self.tokenizer.merger.kept(x_INC, keep_IN), keep_IN.sum(1)
        z_TE, _ = self.coded(self.tokenizer.codes_before(tokens_TC))
        return means(tokens_TC, lengths_I), means(z_TE, lengths_I)

    def learned(self) -> list[Trainable]:
        """What this arm trains."""
        lr, parts = self.own.lr, ["tokenizer.to_code.*", "detokenizer.*"]
        if self.encoder is not None:
            return [Trainable(name, lr) for name in ("encoder.*", *parts)]
        parts += ["tokenizer.merger.*"] + (["tokenizer.selector.*"] if self.kind in LEARNED else [])
        blind = [Trainable("tokenizer.merger.*.cross.*", 0.0)] if self.kind == "no_cross" else []
        return blind + [Trainable(name, lr) for name in parts]


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


# ------------------------------------------------------------------------------------------------ figures


def name_of(caption: str) -> str:
    """What a picture of the bank shows, without the words for its style and backdrop."""
    return re.sub(r"(,? (drawn )?in [^,]* style\b.*|, [^,]* style\b.*|, on an? .*)$", "", caption)


def named_alike(x_IC: Tensor, names: list[str]) -> float:
    """Share of the pictures whose name another picture has too, of which the nearest other picture has it."""
    x_IC = F.normalize(x_IC - x_IC.mean(0), dim=-1)
    likeness_II = (x_IC @ x_IC.T).fill_diagonal_(-torch.inf)
    nearest = likeness_II.argmax(1).tolist()
    asked = [i for i, name in enumerate(names) if names.count(name) > 1]
    return sum(names[nearest[i]] == names[i] for i in asked) / max(1, len(asked))


def correlation(a_I: Tensor, b_I: Tensor) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    a_I, b_I = a_I.double() - a_I.double().mean(), b_I.double() - b_I.double().mean()
    scale = (a_I.square().sum() * b_I.square().sum()).sqrt()
    return 0.0 if scale < 1e-9 else ((a_I * b_I).sum() / scale).item()


def png_bytes(images_NHW3: np.ndarray) -> Tensor:
    """How many bytes each picture takes as a PNG."""
    sizes = []
    for image in images_NHW3:
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, "PNG", optimize=True)
        sizes.append(float(buffer.tell()))
    return torch.tensor(sizes)


@torch.no_grad()
def measured(arm: TokensArm, data: Frozen, n: int) -> dict[str, float]:
    """The figures of a trained arm on single pictures of split `val`."""
    arm.eval()
    singles = data.singles("val", n)
    generator = torch.Generator().manual_seed(0)
    cosines: list[Tensor] = []
    budgets: list[Tensor] = []
    tokens, codes, counts, likely = [], [], [], []
    for part in np.array_split(singles, max(1, len(singles) // 100)):
        x_INC = data.rows("val", part, "tokens")[0][:, 1:]
        keep_IN = arm.choice(x_INC, generator, 0.0)
        logp_IN2 = arm.tokenizer.selector(x_INC)
        best_IN = keep_best(logp_IN2, arm.own.budget) if arm.kind in LEARNED else keep_IN
        for held, mask_IN in ((cosines, keep_IN), (budgets, best_IN.to(x_INC))):
            held.append(F.cosine_similarity(x_INC, arm.rebuild(x_INC, mask_IN)[0], dim=-1).mean(1))
        made = arm.tokens(x_INC, keep_IN > 0)
        tokens.append(made[0])
        codes.append(made[1])
        whole = torch.full((len(x_INC),), float(arm.own.budget))
        counts.append(whole if arm.encoder is not None else keep_IN.sum(1))
        likely.append(logp_IN2[..., KEEP].exp())
    names = [name_of(data.bank("val").captions[i]) for i in singles]
    count_I, p_IN = torch.cat(counts), torch.cat(likely)
    between, within = p_IN.sum(1).var(correction=0), (p_IN * (1 - p_IN)).sum(1).mean()
    return {
        "cosine": torch.cat(cosines).mean().item(),
        "at_budget": torch.cat(budgets).mean().item(),
        "named": named_alike(torch.cat(tokens), names),
        "named_code": named_alike(torch.cat(codes), names),
        "tokens": count_I.mean().item(),
        "deviation": count_I.std(correction=0).item(),
        "complexity": correlation(count_I, png_bytes(data.bank("val").images_NHW3[singles])),
        "decided": (between / (between + within)).item() if arm.kind in LEARNED else 0.0,
    }


# ------------------------------------------------------------------------------------------------ the study


class Study:
    """The arms, their budget and their records."""

    def __init__(self, config: Config, work: Path, out: Path, report: Report) -> None:
        self.config, self.work, self.out, self.report = config, work, out, report

    @cached_property
    def data(self) -> Frozen:
        """Cached features of the frozen parts."""
        return Frozen(self.work)

    def trained(self, kind: str, seed: int, folder: Path) -> TokensArm:
        """One arm, trained from nothing."""
        config, arm = self.config, TokensArm(kind, self.config, seed)

        def features(i: np.ndarray) -> Tensor:
            return self.data.rows("train", i, "tokens")[0][:, 1:]

        def step(arm: TokensArm, i: np.ndarray) -> Losses:
            done = int(arm.done)
            if kind == "codes" and done == arm.switch:
                arm.begin_codes(features(np.arange(min(1024, len(self.data.bank("train"))))))
            noise = max(0.0, 1 - 2 * done / config.steps)  # half of the steps without dice, as it is measured
            arm.done += 1
            return arm.losses(features(i), arm.generator, noise=noise)

        stage = Stage(
            name=kind,
            module=arm,
            step=step,
            trainable=arm.learned(),
            data=IndexBatches(len(self.data.bank("train")), config.batch, seed=seed),
            optim=Optim(steps=config.steps, warmup=0.06, min_lr_ratio=0.02, betas=(0.9, 0.99), weight_decay=0.01),
            config=config,
            generators={"choice": arm.generator},
        )
        fit(stage, folder, device="cpu", seed=seed, log_every=50, save_every=10 * config.steps)
        return arm

    def arms(self) -> list[Arm]:
        """All of them."""

        def arm(kind: str) -> Callable[[int, Path], Mapping[str, float]]:
            return lambda seed, folder: measured(self.trained(kind, seed, folder), self.data, self.config.n)

        return [Arm(kind, title, arm(kind)) for kind, title in KINDS.items()]

    def run(self, seeds: tuple[int, ...]) -> list[Record]:
        """All arms with all seeds; what is on disk is not run again."""
        arms = self.arms()
        return run_arms(arms, seeds, self.out, recipe=asdict(self.config), report=self.report)


def study(
    config: Config, work: Path, out: Path, *, seeds: tuple[int, ...] = (0, 1, 2), report: Report = lambda line: None
) -> str:
    """Runs what of the study is not yet on disk under `out`, and returns its table; needs `rebus train mini.vision` under
    `work`."""
    whole = Study(config, work, out, report)
    records = whole.run(seeds)
    return write_study(out, whole.arms(), MEASURES, records)
