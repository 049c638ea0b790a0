"""SEED stage 1: the causal Q-Former learns what an image says, from left to right (2307.08041 section 3.1).

Image-text contrast on the last query, the only one that has seen all others. The paper starts from BLIP-2 and trains on
64 V100 with batches of 4,096. The mini has no BLIP-2 to start from, so that nothing would make its queries carry what a
picture looks like; it is trained from nothing against frozen sentence vectors, and through the bottleneck of the codes
(not yet rounded to a codebook) it must also rebuild the image embedding.

    rebus train seed.stage1_qformer --config mini --work state
    rebus train seed.stage1_qformer --config paper --work state --data pairs --vision eva.pth --blip2 b.pth --bert bert

With `--data`, a folder of tar shards of pictures and captions, it is trained on these, and BERT's text half with it.

Dimension key: I images · S tokens of the vision encoder · N queries · C width · D width of the image embedding
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import PairBatches, needed
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.nn.text_tokenizer import read_tokenizer
from rebus.papers.seed.bank import read_vision
from rebus.papers.seed.blip2 import read_blip2
from rebus.papers.seed.contrast import Gather, PairTraining
from rebus.papers.seed.losses import contrastive_loss
from rebus.papers.seed.pairs import load_vision
from rebus.papers.seed.space import SentenceSpace
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import MINI_TOKENIZER, PAPER_TOKENIZER
from rebus.train import Losses, Optim, Stage, Trainable, parallel


@dataclass(frozen=True)
class Config:
    """Stage 1; the defaults are the paper's."""

    tokenizer: SeedTokenizerConfig = PAPER_TOKENIZER
    """The tokenizer whose Q-Former is trained."""
    contrast_width: int = 256
    """Width in which image and text meet, where the tokenizer keeps no such space of its own."""
    smoothing: float = 0.1
    """Label smoothing of the contrastive loss."""
    detail_weight: float = 0.0
    """Weight of the image embedding rebuilt from unrounded codes; 0 in the paper, which starts from BLIP-2."""
    gather: Gather = "no_gradient"
    """Pairs only: whether gradients reach the features of other processes; in the published training they do not."""
    matching_weight: float = 0.0
    """Pairs only: weight of image-text matching, off in the release."""
    captioning_weight: float = 0.0
    """Pairs only: weight of writing the caption, off in the release."""
    words: int = 32
    """Pairs only: longest caption in words, its first and last mark included."""
    keep: Keep = KEEP_ALL
    """Pairs only: which pictures are good enough."""
    batch: int = 4096
    """Images of one step, over all processes."""
    lr: float = 3e-5
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=50_000,
            warmup=2000,
            warmup_start=0.01,
            schedule="per_epoch_cosine",
            min_lr_ratio=0.1,
            weight_decay=0.05,
            clip=None,
            precision="fp16",
        )
    )
    """Optimiser and schedule: AdamW, cosine once for each 5,000 steps, half precision."""
    seed: int = 42
    """Order of the data and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        tokenizer=MINI_TOKENIZER,
        detail_weight=4.0,
        batch=96,
        lr=2e-3,
        optim=Optim(steps=1200, warmup=60, min_lr_ratio=0.02, weight_decay=0.05),
    ),
}


class QFormerTraining(nn.Module):
    """The tokenizer with the projections that only stage 1 needs; text is a sentence vector."""

    def __init__(self, config: Config, text_width: int) -> None:
        super().__init__()
        width = config.tokenizer.qformer.width
        self.tokenizer = SeedTokenizer(config.tokenizer)
        self.heads = (
            None if self.tokenizer.embeds else SentenceSpace(width, config.contrast_width, text_width=text_width)
        )
        self.config = config

    @property
    def space(self) -> SentenceSpace:
        """Where images meet texts: the tokenizer's own, or one that only training has."""
        space = self.tokenizer.space or self.heads
        assert space is not None  # one of the two is
        return space

    def losses(self, x_ISC: Tensor, text_IT: Tensor, embedding_ID: Tensor) -> Losses:
        """Features of the frozen vision encoder, sentence vectors, and the image embeddings to be rebuilt; by every query
        where codes are to add up to them."""
        x_INC = self.tokenizer.causal_embeddings(x_ISC)
        space = self.space
        contrast = contrastive_loss(
            space.image(x_INC), space.sentences(text_IT), space.temperature, smoothing=self.config.smoothing
        )
        z_INE = self.tokenizer.codes_before(x_INC, self.tokenizer.start(x_ISC))
        if self.config.tokenizer.codebook == "residual":
            detail = (z_INE - embedding_ID[:, None]).square().mean()
        else:
            detail = F.mse_loss(self.tokenizer.embed_codes(z_INE), embedding_ID)
        total = contrast + self.config.detail_weight * detail
        return Losses(total, {"contrast": contrast, "detail": detail, "temperature": space.temperature})


def on_pairs(config: Config, data: Path, vision: Path | None, blip2: Path | None, bert: Path | None) -> Stage:
    """Stage 1 on image-text pairs; without `blip2` it starts from noise."""
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer = SeedTokenizer(config.tokenizer, generator=generator)
    load_vision(tokenizer, needed("vision", vision, "the vision encoder's weights (eva_vit_g.pth)"))
    module = PairTraining(
        tokenizer,
        read_tokenizer(needed("bert", bert, "BERT's tokenizer, which cuts the captions")),
        contrast_width=config.contrast_width,
        words=config.words,
        smoothing=config.smoothing,
        gather=config.gather,
        matching=config.matching_weight,
        captioning=config.captioning_weight,
        generator=generator,
    )
    if blip2 is not None:
        start = read_blip2(blip2, config.tokenizer, contrast_width=config.contrast_width)
        module.load_state_dict({**module.state_dict(), **{in_training(name): start[name] for name in start}})
    rates = {"text.head.*": config.captioning_weight > 0, "matching.*": config.matching_weight > 0}
    learned = ("tokenizer.vision_norm.*", "tokenizer.qformer.*", "text.*", "heads.*")
    return Stage(
        name="seed.stage1_qformer",
        module=module,
        step=lambda module, batch: module.losses(batch, generator),
        trainable=[
            *(Trainable(pattern, config.lr if on else 0.0) for pattern, on in rates.items()),
            *(Trainable(pattern, config.lr) for pattern in learned),
        ],
        data=PairBatches(
            data,
            config.batch // parallel.world_size(),
            config.tokenizer,
            seed=config.seed,
            rank=parallel.rank(),
            world=parallel.world_size(),
            keep=config.keep,
        ),
        optim=config.optim,
        config=config,
        generators={"wrong pairs": generator},
    )


def in_training(name: str) -> str:
    """The name that a tensor of BLIP-2 has in `PairTraining`."""
    return f"tokenizer.{name}" if name.startswith(("qformer.", "vision_norm.")) else name


def on_bank(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vision under `work`. Trains on cached features of the bank; measures on split `val`."""
    torch.manual_seed(config.seed)
    data = Frozen(work)
    module = QFormerTraining(config, text_width=data.array("captions", "train").shape[1])
    read_vision(module.tokenizer, data.vision)

    def step(module: QFormerTraining, i: np.ndarray) -> Losses:
        return module.losses(*data.rows("train", i, "tokens", "captions", "embeddings"))

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = data.singles("val", 512)
        x_ISC, text_IT, embedding_ID = data.rows("val", singles, "tokens", "captions", "embeddings")
        x_INC, ids = module.tokenizer.causal_embeddings(x_ISC), data.caption_ids("val", singles)
        best = (module.space.image(x_INC) @ module.space.sentences(text_IT).T).argmax(1)
        yield "val/r_at_1", (ids[best] == ids).float().mean().item()
        z_INE = module.tokenizer.codes_before(x_INC, module.tokenizer.start(x_ISC))
        rebuilt_ID = module.tokenizer.embed_codes(z_INE)
        yield "val/detail_mse", F.mse_loss(rebuilt_ID, embedding_ID).item()

    space = "tokenizer.space.*" if module.tokenizer.embeds else "heads.*"
    trained = [space, "tokenizer.vision_norm.*", "tokenizer.qformer.*"]
    if config.detail_weight:
        only_sums = config.tokenizer.codebook == "residual"  # these need no decoder before they are rounded
        parts = ("to_code",) if only_sums else ("to_code", "from_code", "image_decoder", "head")
        trained += [f"tokenizer.{part}.*" for part in parts]
    return Stage(
        name="seed.stage1_qformer",
        module=module,
        step=step,
        trainable=[Trainable(pattern, config.lr) for pattern in trained],
        data=IndexBatches(len(data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )


def stage(
    config: Config,
    work: Path,
    data: Path | None = None,
    vision: Path | None = None,
    blip2: Path | None = None,
    bert: Path | None = None,
) -> Stage:
    """On the pairs under `data`, with the files that `on_pairs` needs; without them on the bank under `work`."""
    return on_bank(config, work) if data is None else on_pairs(config, data, vision, blip2, bert)
