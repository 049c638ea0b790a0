"""SEED-X's image decoder, second stage: it learns to keep what a source image shows (2404.14396 section 3.4, appendix B).

The denoiser gets further input channels for the latent of the source, and all of it trains: on edits, whose source is
seen, mixed with pure pictures, for which these channels are zero, so that one network does both. The paper's edits are
MagicBrush's and its own; the mini's are made from the embedded pictures (`data/edits.py`).

    rebus train seed_x.detokenizer2 --config mini --work state
    rebus train seed_x.detokenizer2 --config paper --work state --data pairs --edits edit --vision qwen.pt --pixels sdxl

With `--data` and `--edits`, in any form that `data/sources.py` reads, it is trained on these from the first stage's weights
under `--work`; an edit is a document whose first picture is the source and whose last the target.

Dimension key: I images · S features · C width · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from rebus.data.edit_pairs import EditBatches
from rebus.data.pairs import needed
from rebus.mini.bank import IndexBatches
from rebus.mini.denoiser import psnr
from rebus.mini.looks import LooksConfig, weighed
from rebus.mini.named_stage import read_stage
from rebus.papers.seed_x.decoder_training import FIRST, SECOND, DecoderTraining, drawn, edit_figures, second_decoder
from rebus.papers.seed_x.detokenizer import FIRST_STAGE, SECOND_STAGE, SeedXDetokenizerConfig
from rebus.papers.seed_x.edit_bank import EditBankConfig, Seen
from rebus.papers.seed_x.published_decoder import SdxlDetokenizerConfig
from rebus.papers.seed_x.sdxl_training import SECOND_STAGE_LEARNS, SdxlTraining, begin_first, begin_second
from rebus.papers.seed_x.tokenizer import SeedXTokenizerConfig
from rebus.train import Losses, Optim, Stage, Trainable, parallel


@dataclass(frozen=True)
class Config:
    """The second stage. Steps, rate and schedule are by default the paper's; the rest of the optimiser that of SEED-Story's published
    script, by the same authors; batch, mixture and dropped conditions neither says."""

    tokenizer: SeedXTokenizerConfig = field(default_factory=SeedXTokenizerConfig)
    """SDXL only: the tokenizer whose features are drawn from. The mini's is the bank's vision encoder."""
    first: SdxlDetokenizerConfig | SeedXDetokenizerConfig = field(default_factory=SdxlDetokenizerConfig)
    """The image decoder that the first stage left."""
    detokenizer: SeedXDetokenizerConfig = SECOND_STAGE
    """Mini only: the image decoder, with channels for a source. SDXL gets as many as its latents have."""
    bank: EditBankConfig = field(default_factory=EditBankConfig)
    """Mini only: the edits."""
    share: float = 0.6
    """Share of edits in a batch; the rest are pure pictures."""
    untold: float = 0.1
    """Share of pictures that are told no features, for guidance towards these."""
    unseen: float = 0.1
    """Share of edits that do not see their source, for guidance towards it."""
    blurred: float = 0.0
    """Mini only (conditioning augmentation): share of pictures whose features are drawn towards the mean and made noisy, as those that a language model
    regresses are; the decoder then learns to do with them."""
    looks: LooksConfig = LooksConfig()
    """Mini only: how much it counts what pictures look like."""
    singles: int = 1
    """Mini only: how many times as often as others pure pictures of one thing come."""
    begin: str | None = None
    """Mini only: a run of this stage under the work folder whose weights it goes on from; none: the first stage's."""
    learns: tuple[str, ...] = ("adapter", "draft", "denoiser")
    """Mini only: parts of the decoder that learn."""
    batch: int = 256
    """Pictures of one step."""
    lr: float = 1e-4
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=30_000, warmup=500, weight_decay=0.03, min_lr_ratio=0.01, clip=1.0)
    )
    """Optimiser and schedule."""
    seed: int = 0
    """Order of the pictures."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        first=FIRST_STAGE,
        blurred=0.4,
        batch=48,
        lr=4e-4,
        optim=Optim(steps=900, warmup=50, weight_decay=0.01, ema=0.998, min_lr_ratio=0.05),
    ),
}


def stage(
    config: Config,
    work: Path,
    data: Path | None = None,
    edits: Path | None = None,
    vision: Path | None = None,
    pixels: Path | None = None,
) -> Stage:
    """On the pictures under `data` and the edits under `edits` with the files that the first stage needs, from its weights
    under `work`; without them on the banks under `work`. Raises RebusError for files that are needed and not named."""
    if isinstance(config.first, SdxlDetokenizerConfig):
        pictures, edits = needed("data", data, "pictures"), needed("edits", edits, "edits")
        return on_pictures(config, work, pictures, edits, vision, pixels)
    return on_bank(config, config.first, work)


def on_pictures(config: Config, work: Path, data: Path, edits: Path, vision: Path | None, pixels: Path | None) -> Stage:
    """SDXL, from what the first stage left."""
    assert isinstance(config.first, SdxlDetokenizerConfig)
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer, first = begin_first(config.first, config.tokenizer, vision, pixels, generator)
    model = begin_second(first, work / FIRST / "weights.safetensors")
    world = parallel.world_size()
    return Stage(
        name=SECOND,
        module=SdxlTraining(tokenizer, model, generator, untold=config.untold, unseen=config.unseen),
        step=lambda module, batch: module.losses(batch),
        trainable=[Trainable(pattern, config.lr) for pattern in SECOND_STAGE_LEARNS],
        data=EditBatches(
            data,
            edits,
            config.batch // world,
            config.first.size[0],
            share=config.share,
            seed=config.seed,
            rank=parallel.rank(),
            world=world,
        ),
        optim=config.optim,
        config=config,
        generators={"noise": generator},
    )


def on_bank(config: Config, first: SeedXDetokenizerConfig, work: Path) -> Stage:
    """Needs the weights of mini.vae, mini.vision, mini.denoiser and the first stage, and the pictures, under `work`."""
    torch.manual_seed(config.seed)
    seen = Seen(work, config.detokenizer.strip, config.bank)
    model = second_decoder(first, config.detokenizer, seen)
    edited, order = seen.banks["train"], weighed(seen.data, config.singles)

    def step(module: DecoderTraining, numbers: np.ndarray) -> Losses:
        edits = round(config.share * len(numbers))
        pure, which = order[numbers[edits:]], torch.randint(len(edited), (edits,)).numpy()
        pure_latents, pure_ISC = seen.pure("train", pure)
        latents, x_ISC, source = seen.edited("train", which)
        return module.losses(
            torch.cat([latents, pure_latents]),
            torch.cat([x_ISC, pure_ISC]),
            torch.cat([source, torch.zeros_like(pure_latents)]),
            pixels_I3hw=torch.cat([edited.pixels(which, 1), seen.data.bank("train").pixels(pure)]),
        )

    def evaluate() -> Iterator[tuple[str, float]]:
        yield from edit_figures(model, seen)
        singles = seen.data.singles("val", 64)
        yield (
            "val/features_psnr",
            psnr(drawn(model, seen.pure("val", singles)[1]), seen.data.bank("val").pixels(singles)),
        )

    module = DecoderTraining(
        model,
        untold=config.untold,
        unseen=config.unseen,
        blurred=config.blurred,
        examples_ISC=seen.examples(),
        looks=config.looks,
    )
    if config.begin is not None:
        read_stage(module, work / config.begin)
    return Stage(
        name=SECOND,
        module=module,
        step=step,
        trainable=[Trainable(f"detokenizer.{part}.*", config.lr) for part in config.learns],
        data=IndexBatches(len(order), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
