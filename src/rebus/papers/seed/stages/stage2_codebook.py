"""SEED stage 2: the codebook, and the way from codes back to an image embedding (2307.08041 section 3.1).

Vision encoder and Q-Former are frozen. The codes must give back the image embedding of a frozen image encoder
(CLIP ViT-H/14 in the paper, the mini vision encoder here) and the causal embeddings. 64 V100 in the paper, batches of
16,384 from CC3M, Unsplash and COCO.

    rebus train seed.stage2_codebook --config mini --work state
    rebus train seed.stage2_codebook --config v1-mini --work state/v1 --out state/v1/seed.stage2_codebook
    rebus train seed.stage2_codebook --config paper --work state --data pairs --vision eva_vit_g.pth --clip clip-vit-h

With `--data`, a folder of tar shards of pictures and captions, it is trained on these; `--clip` is the image encoder whose
embeddings are to come back, `--prompts` a diffusers folder whose text states are (SEED v1, or with a `text_weight`).

Dimension key: I images · S tokens of the vision encoder · N queries · C width · E code width · D width of the image
embedding · K codebook entries
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import PairBatch, PairBatches, needed
from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, take
from rebus.nn.image_encoder import ClipImageEncoder
from rebus.nn.quantize import CodeUsage, EmaQuantizer, ResidualQuantizer, usage
from rebus.nn.text_encoder import PromptEncoder
from rebus.papers.seed.bank import causal_embeddings, code_starts, meaning_directions, nested_dropout, read_vision
from rebus.papers.seed.losses import stage2_losses
from rebus.papers.seed.pairs import load_vision
from rebus.papers.seed.tokenizer import (
    SHARED,
    TRAINING_ONLY,
    CodeDecoder,
    ReverseHead,
    SeedTokenizer,
)
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import MINI_TOKENIZER, PAPER_TOKENIZER, V1_MINI
from rebus.train import Losses, Optim, Stage, Trainable, parallel


@dataclass(frozen=True)
class Config:
    """Stage 2; the defaults are the paper's."""

    tokenizer: SeedTokenizerConfig = PAPER_TOKENIZER
    """The tokenizer whose codebook is trained."""
    weights: tuple[float, float, float] = (5.0, 0.5, 2.0)
    """Weights of quantiser, image embedding and causal embeddings."""
    target: Literal["image", "text", "states"] = "image"
    """What codes give back: the image embedding; pairs only: the text states of the caption (SEED v1); bank only: the patch
    features that the mini denoiser reads (SEED v1's mini)."""
    text_weight: float = 0.0
    """Pairs only: weight of giving back the caption's text states beside the image embedding, off in the release; 0.5 in
    its code."""
    text_states: tuple[int, int] = (77, 768)
    """Number and width of text states."""
    frozen_dropout: bool = False
    """Whether the frozen Q-Former drops out while training, as in the published training; then codes are random."""
    keep: Keep = KEEP_ALL
    """Pairs only: which pictures are good enough."""
    kmeans: bool = False
    """Start the codebook from k-means centres of the data instead of random numbers."""
    revive_every: int = 0
    """Steps after which unused entries are moved onto data; 0 never (the published training)."""
    ema: float | None = None
    """Decay of the running means that the codebook then follows instead of a gradient (the published training has none)."""
    nested_dropout: float = 0.0
    """Codes that add up: share of pictures that are given back from their first codes alone, as many as dice say."""
    kmeans_pictures: int | None = 1024
    """Pictures of the bank that the k-means centres are taken from; none: all that show one thing, as those that show more
    are further from each other and would take most centres."""
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
        weights=(1.0, 10.0, 0.5),
        kmeans=True,
        kmeans_pictures=None,
        nested_dropout=0.25,
        revive_every=50,
        batch=128,
        lr=1.5e-3,
        optim=Optim(steps=1300, warmup=60, min_lr_ratio=0.02, weight_decay=0.01),
    ),
    "v1-mini": Config(
        tokenizer=V1_MINI.tokenizer,
        weights=(1.0, 10.0, 0.5),
        target="states",
        kmeans=True,
        kmeans_pictures=None,
        nested_dropout=0.25,
        revive_every=50,
        batch=128,
        lr=1.5e-3,
        optim=Optim(steps=800, warmup=60, min_lr_ratio=0.02, weight_decay=0.01),
    ),
}


class CodebookTraining(nn.Module):
    """The tokenizer with the count of how often each code is used."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokenizer = SeedTokenizer(config.tokenizer)
        self.config = config
        self.usage = CodeUsage(config.tokenizer.codebook_size)
        size, width = config.tokenizer.codebook_size, config.tokenizer.code_width
        if config.ema is not None:
            if config.tokenizer.codebook != "shared":
                raise RebusError(
                    f"A codebook whose places have entries of their own ({config.tokenizer.codebook!r}) is trained by "
                    f"gradient, but ema={config.ema} was asked for. Leave it out, or share the codebook."
                )
            ema = EmaQuantizer(size, width, beta=config.tokenizer.commitment, decay=config.ema)
            ema.codebook_KC.copy_(self.tokenizer.quantizer.codebook_KC.detach())
            self.tokenizer.quantizer = ema
        if config.nested_dropout and config.tokenizer.codebook != "residual":
            raise RebusError(
                f"Only codes that add up can be dropped from the end, but nested_dropout={config.nested_dropout} was asked for with the codebook "
                f"{config.tokenizer.codebook!r}. Leave it at 0, or choose `residual`."
            )
        if config.text_weight:
            queries, state = config.text_states
            reverse = replace(config.tokenizer, head="reverse", reverse_queries=queries, image_width=state)
            self.text = nn.Sequential(CodeDecoder(config.tokenizer), ReverseHead(reverse))

    def losses(
        self,
        x_INC: Tensor,
        embedding_ID: Tensor,
        generator: torch.Generator,
        states_ILC: Tensor | None = None,
        start_IE: Tensor | None = None,
    ) -> Losses:
        """Causal embeddings of the frozen Q-Former, and the image embeddings to be rebuilt; `states_ILC` are the caption's
        text states, where these are rebuilt beside, `start_IE` where codes start, if not with the Q-Former."""
        tokenizer, config = self.tokenizer, self.config
        z_INE = tokenizer.codes_before(x_INC, start_IE)
        if config.revive_every and int(self.usage.batches + 1) % config.revive_every == 0:
            tokenizer.quantizer.revive(self.usage.dead_K(), z_INE.detach().flatten(0, 1), generator)
        quantized = tokenizer.quantizer(z_INE)
        self.usage.add(quantized.ids)
        if isinstance(tokenizer.quantizer, EmaQuantizer) and self.training:
            tokenizer.quantizer.update(z_INE.detach(), quantized.ids)
        terms = stage2_losses(
            quantized.loss,
            tokenizer.embed_codes(
                nested_dropout(quantized.x, config.nested_dropout) if config.nested_dropout else quantized.x
            ),
            embedding_ID,
            tokenizer.reconstruct_embeddings(quantized.x),
            x_INC,
            weights=config.weights,
        )
        used, perplexity = usage(quantized.ids, config.tokenizer.codebook_size)
        parts = {"quantiser": terms.quantiser, "image": terms.image, "embedding": terms.embedding}
        total = terms.total
        if states_ILC is not None and config.text_weight:
            parts["text"] = config.text_weight * F.mse_loss(self.text(tokenizer.from_code(quantized.x)), states_ILC)
            total = total + parts["text"]
        return Losses(total, parts | {"codes_used": float(used), "perplexity": perplexity})


RUNNING_MEANS = ("quantizer.hits_K", "quantizer.sum_KC")
"""What only the training of a codebook that follows running means needs."""


def load_tokenizer(
    config: SeedTokenizerConfig,
    *files: Path,
    untrained: Sequence[str] = (*SHARED, TRAINING_ONLY),
    fresh: Sequence[str] = (),
) -> SeedTokenizer:
    """A tokenizer from the weights of its stages: a part that a later one trained is the later one's as a whole. What begins
    with one of `untrained` may be missing and stays as it was built; what begins with one of `fresh` is not read.
    Raises ValueError for anything else that is missing or left over."""
    tokenizer = SeedTokenizer(config)
    weights: dict[str, Tensor] = {}
    for file in files:
        found = {k.removeprefix("tokenizer."): v for k, v in load_file(file).items() if k.startswith("tokenizer.")}
        again = {name.partition(".")[0] for name in found}
        weights = {name: x for name, x in weights.items() if name.partition(".")[0] not in again}
        weights |= {name: x.float() for name, x in found.items()}
    dropped = (*RUNNING_MEANS, *fresh)
    weights = {name: x for name, x in weights.items() if not name.startswith(dropped)}
    untrained = (*untrained, *fresh)
    missing, unexpected = tokenizer.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if not name.startswith(tuple(untrained))]
    if lacking or unexpected:
        raise ValueError(f"Stage weights do not fit the tokenizer: missing {lacking[:4]}, unexpected {unexpected[:4]}.")
    return tokenizer


def on_pairs(
    config: Config, work: Path, data: Path, vision: Path | None, clip: Path | None, prompts: Path | None
) -> Stage:
    """Stage 2 on image-text pairs, from stage 1's weights under `work`."""
    if config.target == "states":
        raise RebusError(
            "Patch features are what codes give back in the mini, which is trained on the bank, but --data names pairs. "
            "Choose `--target image` or `--target text`, or leave --data out."
        )
    generator = torch.Generator().manual_seed(config.seed)
    module = CodebookTraining(config)
    first = work / "seed.stage1_qformer" / "weights.safetensors"
    own = tuple(f"{part}." for part in PARTS)
    start = load_tokenizer(config.tokenizer, first, untrained=(*SHARED, *own))
    load_vision(start, needed("vision", vision, "the vision encoder's weights (eva_vit_g.pth)"))
    kept = {name: x for name, x in start.state_dict().items() if not name.startswith(own)}
    module.tokenizer.load_state_dict({**module.tokenizer.state_dict(), **kept})
    # outside the module: neither learns, nor is part of what is saved
    seeing = ClipImageEncoder(needed("clip", clip, "CLIP's image encoder")) if config.target == "image" else None
    speaks = config.target == "text" or config.text_weight > 0
    states = PromptEncoder(needed("prompts", prompts, "the text encoder of a diffusion model")) if speaks else None

    @torch.no_grad()
    def seen(module: CodebookTraining, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Causal embeddings, the target, and the text states where they are another one."""
        device = batch.pixels_I3hw.device
        tokenizer = module.tokenizer
        if config.frozen_dropout and module.training:
            tokenizer.qformer.train()
        x_INC = tokenizer.causal_embeddings(tokenizer.features(batch.pixels_I3hw))
        states_ILC = None if states is None else states.to(device)(batch.captions)
        if seeing is not None:
            return x_INC, seeing.to(device)(batch.pixels_I3hw), states_ILC
        assert states_ILC is not None  # the target
        return x_INC, states_ILC, None

    def step(module: CodebookTraining, batch: PairBatch) -> Losses:
        x_INC, target, states_ILC = seen(module, batch)
        return module.losses(x_INC, target, generator, states_ILC)

    batches = PairBatches(
        data,
        config.batch // parallel.world_size(),
        config.tokenizer,
        seed=config.seed,
        rank=parallel.rank(),
        world=parallel.world_size(),
        keep=config.keep,
    )
    if config.kmeans:
        module.eval()
        x_INC = seen(module, next(iter(batches)))[0]
        with torch.no_grad():
            start_from = module.tokenizer.codes_before(x_INC).flatten(0, 1)
        module.tokenizer.quantizer.start_from(start_from, generator)
        batches.load_state_dict({"position": 0, "skipped": 0})
    return Stage(
        name="seed.stage2_codebook",
        module=module,
        step=step,
        trainable=learned(config),
        data=batches,
        optim=config.optim,
        config=config,
        generators={"revival": generator},
    )


PARTS = ("to_code", "quantizer", "from_code", "image_decoder", "embedding_decoder", "head")
"""What of the tokenizer stage 2 trains."""


def learned(config: Config) -> list[Trainable]:
    """What learns: a codebook that follows running means has no gradient."""
    names = [f"tokenizer.{part}.*" for part in PARTS if not (part == "quantizer" and config.ema is not None)]
    return [Trainable(name, config.lr) for name in (*names, *(["text.*"] if config.text_weight else []))]


def check_bank_target(config: Config) -> None:
    """Raises RebusError when the bank does not hold the target, or the tokenizer's head gives back something else."""
    if config.target == "text":
        raise RebusError(
            "The states of captions are computed while training on pairs, but no --data was named. Name a folder of pairs, "
            "or choose `--target states`."
        )
    sizes = config.tokenizer
    given = (sizes.reverse_queries, sizes.image_width)
    wanted = (sizes.vision.grid**2, sizes.vision.width)
    if config.target == "states" and (sizes.head != "reverse" or given != wanted):
        raise RebusError(
            f"The codes are to give back {wanted[0]} patch features of width {wanted[1]}, but this tokenizer's head is "
            f"{sizes.head!r} and gives {given[0]} of width {given[1]}. Set `reverse_queries` and `image_width` to these."
        )


def on_bank(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vision and stage 1 under `work`. Trains on cached causal embeddings of the bank. Where not
    the image embedding is given back, codebook and head begin anew: stage 1 made them for that."""
    check_bank_target(config)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    data = Frozen(work)
    first = work / "seed.stage1_qformer" / "weights.safetensors"
    start = load_tokenizer(
        config.tokenizer,
        first,
        untrained=(*SHARED, *(f"{part}." for part in PARTS if part != "to_code")),
        fresh=("quantizer.", "head.") if config.target == "states" else (),
    ).eval()
    read_vision(start, data.vision)
    module = CodebookTraining(config)
    module.tokenizer.load_state_dict({**module.tokenizer.state_dict(), **start.state_dict()})

    def rows(split: str, i: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        causal, starts = causal_embeddings(data, split, start), code_starts(data, split, i, start)
        if config.target == "states":
            return take(causal, i), data.states(split, i), starts
        return take(causal, i), take(data.array("embeddings", split), i), starts

    def first_rows(split: str, n: int = 1024) -> np.ndarray:
        return np.arange(min(n, len(data.bank(split))))

    def step(module: CodebookTraining, i: np.ndarray) -> Losses:
        x_INC, target, start_IE = rows("train", i)
        return module.losses(x_INC, target, generator, start_IE=start_IE)

    tokenizer, quantizer = module.tokenizer, module.tokenizer.quantizer
    if isinstance(quantizer, ResidualQuantizer) and quantizer.meaning:
        quantizer.along_CP.copy_(meaning_directions(data, start, quantizer.along_CP.shape[1]))
    if config.kmeans:
        with torch.no_grad():
            n = config.kmeans_pictures
            chosen = data.singles("train", len(data.bank("train"))) if n is None else first_rows("train", n)
            x_INC, _, start_IE = rows("train", chosen)
            z_INE = tokenizer.codes_before(x_INC, start_IE)
            quantizer.start_from(z_INE.flatten(0, 1), generator)

    def evaluate() -> Iterator[tuple[str, float]]:
        x_INC, embedding_ID, start_IE = rows("val", first_rows("val"))
        quantized = tokenizer.quantize(x_INC, start_IE)
        yield "val/image_mse", F.mse_loss(tokenizer.embed_codes(quantized.x), embedding_ID).item()
        used, perplexity = usage(quantized.ids, config.tokenizer.codebook_size)
        yield "val/codes_used", float(used)
        yield "val/perplexity", perplexity

    return Stage(
        name="seed.stage2_codebook",
        module=module,
        step=step,
        trainable=learned(config),
        data=IndexBatches(len(data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
        generators={"revival": generator},
    )


def stage(
    config: Config,
    work: Path,
    data: Path | None = None,
    vision: Path | None = None,
    clip: Path | None = None,
    prompts: Path | None = None,
) -> Stage:
    """From stage 1's weights under `work`, on the pairs under `data` with the files that `on_pairs` needs; without them on
    the bank under `work`."""
    return on_bank(config, work) if data is None else on_pairs(config, work, data, vision, clip, prompts)
