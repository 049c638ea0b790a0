"""SEED-X's image decoder, first stage: a latent diffusion model learns to draw from an image's features (2404.14396
section 3.1, appendix B).

The paper trains the adapter and the keys and values of SDXL's UNet, all of its attention, on JourneyDB, LAION-Aesthetics,
Unsplash and LAION-COCO. The mini does the same on the mini base denoiser and the bank, with the draft of the mini family.

    rebus train seed_x.detokenizer1 --config mini --work state
    rebus train seed_x.detokenizer1 --config paper --work state --data pairs --vision qwen_vit_G.pt --pixels sdxl

With `--data`, pictures in any form that `data/sources.py` reads, it is trained on these; `--pixels` is SDXL in the layout of
diffusers.

Dimension key: I images · S features · C width
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
from rebus.papers.seed_x.decoder_training import FIRST, KEYS_AND_VALUES, DecoderTraining, drawn, first_decoder
from rebus.papers.seed_x.detokenizer import FIRST_STAGE, SeedXDetokenizerConfig
from rebus.papers.seed_x.edit_bank import Seen
from rebus.papers.seed_x.published_decoder import SdxlDetokenizerConfig
from rebus.papers.seed_x.sdxl_training import FIRST_STAGE_LEARNS, SdxlTraining, begin_first
from rebus.papers.seed_x.tokenizer import SeedXTokenizerConfig
from rebus.train import Losses, Optim, Stage, Trainable, parallel


@dataclass(frozen=True)
class Config:
    """The first stage. Steps, rate and schedule are by default the paper's; the rest of the optimiser that of SEED-Story's published
    script, by the same authors; batch and dropped conditions neither says."""

    tokenizer: SeedXTokenizerConfig = field(default_factory=SeedXTokenizerConfig)
    """SDXL only: the tokenizer whose features are drawn from. The mini's is the bank's vision encoder."""
    detokenizer: SdxlDetokenizerConfig | SeedXDetokenizerConfig = field(default_factory=SdxlDetokenizerConfig)
    """The image decoder; of a real one UNet, VAE and sampler are the given folder's."""
    untold: float = 0.1
    """Share of pictures that are told nothing, for classifier-free guidance."""
    blurred: float = 0.0
    """Mini only (conditioning augmentation): share of pictures whose features are drawn towards the mean and made noisy, as those that a language model
    regresses are; the decoder then learns to do with them."""
    vector_weight: float = 0.0
    """Mini only: weight of the squared distance of the adapter's vector from the image embedding, which the base denoiser was
    told in its place. Through the velocity alone it would be found slowly."""
    batch: int = 256
    """Pictures of one step."""
    lr: float = 1e-4
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=42_000, warmup=500, weight_decay=0.03, min_lr_ratio=0.01, clip=1.0)
    )
    """Optimiser and schedule."""
    seed: int = 0
    """Order of the pictures."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        detokenizer=FIRST_STAGE,
        blurred=0.4,
        vector_weight=0.5,
        batch=48,
        lr=5e-4,
        optim=Optim(steps=900, warmup=50, weight_decay=0.01, ema=0.998, min_lr_ratio=0.05),
    ),
}


def stage(
    config: Config, work: Path, data: Path | None = None, vision: Path | None = None, pixels: Path | None = None
) -> Stage:
    """On the pictures under `data` with the files that `on_pictures` needs; without them on the bank under `work`. Raises
    RebusError for data that does not belong to the config."""
    if isinstance(config.detokenizer, SdxlDetokenizerConfig):
        return on_pictures(config, needed("data", data, "pictures"), vision, pixels)
    return on_bank(config, config.detokenizer, work)


def on_pictures(config: Config, data: Path, vision: Path | None, pixels: Path | None) -> Stage:
    """SDXL, begun from its folder `pixels`, with the published vision encoder."""
    assert isinstance(config.detokenizer, SdxlDetokenizerConfig)
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer, model = begin_first(config.detokenizer, config.tokenizer, vision, pixels, generator)
    world = parallel.world_size()
    return Stage(
        name=FIRST,
        module=SdxlTraining(tokenizer, model, generator, untold=config.untold),
        step=lambda module, batch: module.losses(batch),
        trainable=[Trainable(pattern, config.lr) for pattern in FIRST_STAGE_LEARNS],
        data=EditBatches(
            data,
            None,
            config.batch // world,
            config.detokenizer.size[0],
            seed=config.seed,
            rank=parallel.rank(),
            world=world,
        ),
        optim=config.optim,
        config=config,
        generators={"noise": generator},
    )


def on_bank(config: Config, sizes: SeedXDetokenizerConfig, work: Path) -> Stage:
    """Needs the weights of mini.vae, mini.vision and mini.denoiser under `work`."""
    torch.manual_seed(config.seed)
    seen = Seen(work, sizes.strip)
    model = first_decoder(sizes, seen)

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = seen.data.singles("val", 64)
        pixels, (_, x_ISC) = seen.data.bank("val").pixels(singles), seen.pure("val", singles)
        yield "val/features_psnr", psnr(drawn(model, x_ISC), pixels)
        yield "val/features_draft_psnr", psnr(model.codec.decode(model.draft(x_ISC)), pixels)

    def step(module: DecoderTraining, i: np.ndarray) -> Losses:
        (embedding_ID,) = seen.data.rows("train", i, "embeddings") if config.vector_weight else (None,)
        return module.losses(*seen.pure("train", i), embedding_ID=embedding_ID)

    learn = ["detokenizer.adapter.*", "detokenizer.draft.*"]
    learn += [f"detokenizer.denoiser.*.{name}.*" for name in KEYS_AND_VALUES]
    return Stage(
        name=FIRST,
        module=DecoderTraining(
            model,
            untold=config.untold,
            blurred=config.blurred,
            vector_weight=config.vector_weight,
            examples_ISC=seen.examples(),
        ),
        step=step,
        trainable=[Trainable(pattern, config.lr) for pattern in learn],
        data=IndexBatches(len(seen.data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
