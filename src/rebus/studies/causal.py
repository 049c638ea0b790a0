"""Does it help that SEED's codes are causal? SEED's own claim, at equal bits, steps and data (2307.08041 sections 2 and 3.1).

Three tokenizers that differ in nothing but where their 32 tokens come from: queries that each see only those before (SEED),
queries that all see each other, and the cells of a grid over the picture, row by row. Each is trained as SEED's stages 1 and 2
are; then a small language model from nothing learns to write captions' pictures in its codes, and has to do so on its own.

    rebus study causal --work state --out state/study-causal --docs docs/studies

Dimension key: I images · S tokens of the vision encoder · N codes of an image · C width · D width of the image embedding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, take
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.space import SentenceSpace
from rebus.papers.seed.stages import stage1_qformer, stage2_codebook
from rebus.papers.seed.stages.stage1_qformer import QFormerTraining
from rebus.papers.seed.stages.stage2_codebook import CodebookTraining
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import PLAIN_TOKENIZER
from rebus.studies import causal_verdict
from rebus.studies.arms import Arm, Measure, Record, Report, run_arms
from rebus.studies.verdict import publish
from rebus.studies.writer import Writer, WriterConfig, retrieved
from rebus.train import Losses, Stage, Trainable, fit

MEASURES = (
    Measure("image_error", "image embedding rebuilt from codes, squared error", "lower"),
    Measure("found", "rebuilt picture found among all others"),
    Measure("perplexity", "perplexity of the codes", ""),
    Measure("nats", "nats per code when written after a caption", "lower"),
    Measure("valid", "whole images, written without a grammar"),
    Measure("likeness", "drawn from a caption: cosine to the picture meant"),
    Measure("drawn", "drawn from a caption: picture meant found among all others"),
)


@dataclass(frozen=True)
class Config:
    """Budget of an arm, equal for all."""

    codebook: str = "shared"
    """`shared` is the paper's: a code's place is not in its name, so that a model can lose count of them."""
    codes: int = 1024
    """Entries of the codebook."""
    stage1: int = 500
    """Steps of stage 1, 96 pictures each."""
    stage2: int = 500
    """Steps of stage 2, 128 pictures each."""
    language: int = 700
    """Steps of the language model, 48 captions with pictures each."""
    width: int = 256
    """Width of the language model."""
    depth: int = 6
    """Its layers."""
    n: int = 200
    """Single pictures of split `val` that are measured."""


# ------------------------------------------------------------------------------------------------ the arms


class GridFormer(nn.Module):
    """Tokens that are places: the patches of each cell of a grid, laid end to end and projected; cells row by row.

    As many cells as a Q-Former has queries, and its interface. The cells of 64 patches and 32 tokens are 1 high, 2 wide.
    """

    def __init__(self, config: QFormerConfig, grid: int) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.wide = grid * grid // config.queries
        if self.wide * config.queries != grid * grid or grid % self.wide:
            raise RebusError(
                f"A grid of {grid} x {grid} patches cannot be cut into {config.queries} equal cells of one row each. "
                "Choose a number of tokens that divides it."
            )
        self.mix = nn.Sequential(
            nn.Linear(self.wide * config.source_width, config.mlp_hidden),
            nn.GELU(),
            nn.Linear(config.mlp_hidden, config.width),
            nn.LayerNorm(config.width),
        )

    def forward(self, x_ISC: Tensor) -> Tensor:
        """Tokens of the vision encoder, a class token before the patches allowed → x_INC."""
        patches_ISC = x_ISC[:, -self.grid * self.grid :]
        return self.mix(rearrange(patches_ISC, "i (n w) c -> i n (w c)", w=self.wide))


class MeanSpace(SentenceSpace):
    """For tokens of which none has seen all others: the contrast is on their mean."""

    def image(self, x_INC: Tensor) -> Tensor:
        """x_INC → unit vectors_IC."""
        return super().image(x_INC.mean(1, keepdim=True))


Kind = str
KINDS: Mapping[Kind, str] = {
    "causal": "32 causal codes (SEED)",
    "bidirectional": "32 bidirectional codes",
    "grid": "32 codes of grid cells",
}


class CausalArm:
    """One tokenizer and the language model that learns its codes."""

    def __init__(self, kind: Kind, config: Config, data: Frozen, seed: int, folder: Path, report: Report) -> None:
        torch.manual_seed(seed)
        self.kind, self.config, self.data, self.seed, self.folder, self.report = (
            kind,
            config,
            data,
            seed,
            folder,
            report,
        )
        queries = replace(PLAIN_TOKENIZER.qformer, causal=kind == "causal")
        self.tokenizer_config = replace(
            PLAIN_TOKENIZER,
            qformer=queries,
            codebook="shared" if config.codebook == "shared" else "per_query",
            codebook_size=config.codes,
        )

    def shape(self, tokenizer: SeedTokenizer) -> SeedTokenizer:
        """The tokenizer with this arm's source of tokens."""
        if self.kind == "grid":
            tokenizer.qformer = GridFormer(self.tokenizer_config.qformer, PLAIN_TOKENIZER.vision.grid)  # type: ignore[assignment]
        return tokenizer

    def fit(self, stage: Stage) -> None:
        """Trains one part, or goes on with it."""
        fit(stage, self.folder / stage.name, device="cpu", seed=self.seed, log_every=50, save_every=10_000)
        self.report(f"{self.kind}, seed {self.seed}: {stage.name} done")

    def tokens(self) -> SeedTokenizer:
        """Stage 1, the contrast and what a picture looks like; its losses are SEED's."""
        config = replace(stage1_qformer.CONFIGS["mini"], tokenizer=self.tokenizer_config, seed=self.seed)
        module = QFormerTraining(config, text_width=self.data.array("captions", "train").shape[1])
        self.shape(module.tokenizer)
        if self.kind == "grid":
            before = module.space
            module.heads = MeanSpace(
                self.tokenizer_config.qformer.width,
                config.contrast_width,
                text_width=before.text_proj.in_features,
            )
            module.heads.text_proj = before.text_proj

        def step(module: QFormerTraining, i: np.ndarray) -> Losses:
            return module.losses(*self.data.rows("train", i, "tokens", "captions", "embeddings"))

        names = ("vision_norm", "qformer", "to_code", "from_code", "image_decoder", "head")
        learned = ["heads.*", *(f"tokenizer.{name}.*" for name in names)]
        self.fit(
            Stage(
                name="tokens",
                module=module,
                step=step,
                trainable=[Trainable(pattern, config.lr) for pattern in learned],
                data=IndexBatches(len(self.data.bank("train")), config.batch, seed=self.seed),
                optim=replace(config.optim, steps=self.config.stage1, warmup=0.1),
                config=config,
            )
        )
        return module.tokenizer.eval()

    def rounded(self, start: SeedTokenizer) -> SeedTokenizer:
        """Stage 2: the codebook, and the way back to the image embedding."""
        config = replace(
            stage2_codebook.CONFIGS["mini"],
            tokenizer=self.tokenizer_config,
            weights=(5.0, 5.0, 0.5),
            nested_dropout=0.0,
            seed=self.seed,
        )
        generator = torch.Generator().manual_seed(self.seed)
        module = CodebookTraining(config)
        self.shape(module.tokenizer)
        module.tokenizer.load_state_dict({**module.tokenizer.state_dict(), **start.state_dict()})

        def rows(split: str, i: np.ndarray) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                x_ISC, embedding_ID = self.data.rows(split, i, "tokens", "embeddings")
                return start.causal_embeddings(x_ISC), embedding_ID

        tokenizer = module.tokenizer
        with torch.no_grad():
            z_INE = tokenizer.codes_before(rows("train", np.arange(1024))[0])
            tokenizer.quantizer.start_from(z_INE.flatten(0, 1), generator)
        self.fit(
            Stage(
                name="codes",
                module=module,
                step=lambda module, i: module.losses(*rows("train", i), generator),
                trainable=stage2_codebook.learned(config),
                data=IndexBatches(len(self.data.bank("train")), config.batch, seed=self.seed),
                optim=replace(config.optim, steps=self.config.stage2, warmup=0.1),
                config=config,
                generators={"revival": generator},
            )
        )
        return tokenizer.eval()

    @torch.no_grad()
    def codes(self, tokenizer: SeedTokenizer, split: str, i: np.ndarray) -> Tensor:
        """ids_IN of pictures of the bank."""
        made = []
        for start in range(0, len(i), 256):
            x_INC = tokenizer.causal_embeddings(take(self.data.array("tokens", split), i[start : start + 256]))
            made.append(tokenizer.quantizer.encode(tokenizer.codes_before(x_INC)))
        return torch.cat(made)

    def run(self) -> dict[str, float]:
        """Trains all of it and measures."""
        tokenizer = self.rounded(self.tokens())
        kept = self.data.singles("val", self.config.n)
        ids_IN = self.codes(tokenizer, "val", kept)
        meant_ID = take(self.data.array("embeddings", "val"), kept)
        settings = WriterConfig(
            self.config.codes,
            self.config.codebook != "shared",
            self.config.width,
            self.config.depth,
            self.config.language,
        )
        singles, bank = self.data.singles("train", len(self.data.bank("train"))), self.data.bank("train")
        writer = Writer(
            settings, [bank.captions[i] for i in singles], self.codes(tokenizer, "train", singles), seed=self.seed
        )
        self.fit(writer.stage())
        captions = [self.data.bank("val").captions[i] for i in kept]
        return reconstruction(tokenizer, ids_IN, meant_ID) | writer.measure(captions, ids_IN, tokenizer, meant_ID)


@torch.no_grad()
def reconstruction(tokenizer: SeedTokenizer, ids_IN: Tensor, embedding_ID: Tensor) -> dict[str, float]:
    """What the codes keep of the image embedding."""
    rebuilt_ID = tokenizer.image_embedding(ids_IN)
    share_K = torch.bincount(ids_IN.flatten(), minlength=tokenizer.config.codebook_size) / ids_IN.numel()
    return {
        "image_error": F.mse_loss(rebuilt_ID, embedding_ID).item(),
        "found": retrieved(rebuilt_ID, embedding_ID),
        "perplexity": torch.special.entr(share_K).sum().exp().item(),
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

    def arms(self) -> list[Arm]:
        """The three of them."""

        def arm(kind: Kind) -> Callable[[int, Path], Mapping[str, float]]:
            return lambda seed, folder: CausalArm(kind, self.config, self.data, seed, folder, self.report).run()

        return [Arm(kind, title, arm(kind)) for kind, title in KINDS.items()]

    def run(self, seeds: tuple[int, ...]) -> list[Record]:
        """All arms with all seeds; what is on disk is not run again."""
        arms = self.arms()
        return run_arms(arms, seeds, self.out, recipe=asdict(self.config), report=self.report)

    def write(self, records: list[Record], docs: Path | None) -> str:
        """Figures, plot and verdict, under `out` and, where it is given, under `docs`."""
        config, found = self.config, causal_verdict.findings(records)
        return publish(
            "causal",
            (self.out, docs),
            self.arms(),
            MEASURES,
            records,
            title=causal_verdict.TITLE,
            conclusion=causal_verdict.conclusion(found),
            found=found,
            setting={
                "codes of an image": PLAIN_TOKENIZER.qformer.queries,
                f"{config.codebook} codebook of": config.codes,
                "steps of stages 1 and 2": f"{config.stage1} and {config.stage2}",
                "steps of the language model": config.language,
                "pictures measured": config.n,
            },
        )


def study(
    config: Config,
    work: Path,
    out: Path,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    report: Report = lambda line: None,
    docs: Path | None = None,
) -> str:
    """Runs what of the study is not yet on disk under `out`, writes `causal.md` and its plot there and under `docs`, and
    returns the text; needs `rebus train mini.vision` under `work`."""
    whole = Study(config, work, out, report)
    return whole.write(whole.run(seeds), docs)
