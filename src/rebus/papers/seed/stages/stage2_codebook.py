"""SEED stage 2: the codebook, and the way from codes back to an image embedding (2307.08041 section 3.1).

Vision encoder and Q-Former are frozen. The codes must give back the image embedding of a frozen image encoder
(CLIP ViT-H/14 in the paper, the mini vision encoder here) and the causal embeddings. 64 V100 in the paper, batches of
16,384 from CC3M, Unsplash and COCO.

    rebus train seed.stage2_codebook --config mini --work state

Dimension key: I images · S tokens of the vision encoder · N queries · C width · E code width · D width of the image
embedding · K codebook entries
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, take
from rebus.nn.quantize import CodeUsage, usage
from rebus.papers.seed.losses import stage2_losses
from rebus.papers.seed.tokenizer import SeedTokenizer, SeedTokenizerConfig
from rebus.papers.seed.variants import MINI_TOKENIZER, PAPER_TOKENIZER
from rebus.train import Losses, Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """Stage 2; the defaults are the paper's."""

    tokenizer: SeedTokenizerConfig = PAPER_TOKENIZER
    """The tokenizer whose codebook is trained."""
    weights: tuple[float, float, float] = (5.0, 0.5, 2.0)
    """Weights of quantiser, image embedding and causal embeddings."""
    kmeans: bool = False
    """Start the codebook from k-means centres of the data instead of random numbers."""
    revive_every: int = 0
    """Steps after which unused entries are moved onto data; 0 never (the published training)."""
    batch: int = 16_384
    """Images of one step, over all processes."""
    lr: float = 1e-4
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=2_500_000,
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
        weights=(5.0, 5.0, 0.5),
        kmeans=True,
        revive_every=50,
        batch=128,
        lr=1.5e-3,
        optim=Optim(steps=2400, warmup=60, min_lr_ratio=0.02, weight_decay=0.01),
    ),
}


class CodebookTraining(nn.Module):
    """The tokenizer with the count of how often each code is used."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokenizer = SeedTokenizer(config.tokenizer)
        self.config = config
        self.usage = CodeUsage(config.tokenizer.codebook_size)
        self.batches = 0

    def losses(self, x_INC: Tensor, embedding_ID: Tensor, generator: torch.Generator) -> Losses:
        """Causal embeddings of the frozen Q-Former, and the image embeddings to be rebuilt."""
        tokenizer, config = self.tokenizer, self.config
        z_INE = tokenizer.codes_before(x_INC)
        self.batches += 1
        if config.revive_every and self.batches % config.revive_every == 0:
            tokenizer.quantizer.revive(self.usage.dead_K(), z_INE.detach().flatten(0, 1), generator)
        quantized = tokenizer.quantizer(z_INE)
        self.usage.add(quantized.ids)
        terms = stage2_losses(
            quantized.loss,
            tokenizer.embed_codes(quantized.x),
            embedding_ID,
            tokenizer.reconstruct_embeddings(quantized.x),
            x_INC,
            weights=config.weights,
        )
        used, perplexity = usage(quantized.ids, config.tokenizer.codebook_size)
        parts = {"quantiser": terms.quantiser, "image": terms.image, "embedding": terms.embedding}
        return Losses(terms.total, parts | {"codes_used": float(used), "perplexity": perplexity})


def load_tokenizer(
    config: SeedTokenizerConfig, *files: Path, untrained: Sequence[str] = ("visual_encoder.",)
) -> SeedTokenizer:
    """A tokenizer from the weights of its stages, the later laid over the earlier; what begins with one of `untrained`
    may be missing and stays as it was built. Raises ValueError for anything else that is missing or left over."""
    tokenizer = SeedTokenizer(config)
    weights: dict[str, Tensor] = {}
    for file in files:
        found = load_file(file)
        weights |= {k.removeprefix("tokenizer."): v.float() for k, v in found.items() if k.startswith("tokenizer.")}
    missing, unexpected = tokenizer.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if not name.startswith(tuple(untrained))]
    if lacking or unexpected:
        raise ValueError(f"Stage weights do not fit the tokenizer: missing {lacking[:4]}, unexpected {unexpected[:4]}.")
    return tokenizer


def causal_embeddings(data: Frozen, split: str, tokenizer: SeedTokenizer) -> np.ndarray:
    """What the frozen Q-Former of stage 1 says of every picture of the bank, [N queries, C] each; computed once."""

    def run(i: np.ndarray) -> Tensor:
        return tokenizer.causal_embeddings(take(data.array("tokens", split), i))

    return data.derive("seed_causal", split, run)


def bank_codes(data: Frozen, split: str, tokenizer: SeedTokenizer) -> np.ndarray:
    """The codes of every picture of the bank, int64 [N] each; computed once."""
    causal = causal_embeddings(data, split, tokenizer)
    return data.derive(
        "seed_codes", split, lambda i: tokenizer.quantizer.encode(tokenizer.codes_before(take(causal, i)))
    )


def stage(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vision and stage 1 under `work`. Trains on cached causal embeddings of the bank."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    data = Frozen(work)
    first = work / "seed.stage1_qformer" / "weights.safetensors"
    start = load_tokenizer(
        config.tokenizer, first, untrained=("visual_encoder.", "quantizer.", "embedding_decoder.")
    ).eval()
    start.visual_encoder.load_state_dict(data.vision.vit.state_dict())
    module = CodebookTraining(config)
    module.tokenizer.load_state_dict(start.state_dict())

    def rows(split: str, i: np.ndarray) -> tuple[Tensor, Tensor]:
        causal = causal_embeddings(data, split, start)
        return take(causal, i), take(data.array("embeddings", split), i)

    tokenizer, quantizer = module.tokenizer, module.tokenizer.quantizer
    if config.kmeans:
        with torch.no_grad():
            z_INE = tokenizer.codes_before(rows("train", np.arange(1024))[0])
            quantizer.start_from(z_INE.flatten(0, 1), generator)

    def evaluate() -> Iterator[tuple[str, float]]:
        x_INC, embedding_ID = rows("val", np.arange(1024))
        quantized = tokenizer.quantize(x_INC)
        yield "val/image_mse", F.mse_loss(tokenizer.embed_codes(quantized.x), embedding_ID).item()
        used, perplexity = usage(quantized.ids, config.tokenizer.codebook_size)
        yield "val/codes_used", float(used)
        yield "val/perplexity", perplexity

    parts = ("to_code", "quantizer", "from_code", "image_decoder", "embedding_decoder", "head")
    return Stage(
        name="seed.stage2_codebook",
        module=module,
        step=lambda module, i: module.losses(*rows("train", i), generator),
        trainable=[Trainable(f"tokenizer.{part}.*", config.lr) for part in parts],
        data=IndexBatches(len(data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
        generators={"revival": generator},
    )
