"""After the image decoder's second stage: where an edit keeps its source (ours; mini only).

A small network learns from the mask of each edit, on the drafts of the decoder that the second stage left, of true features and of such as
are drawn towards the mean, as a language model's are.

    rebus train seed_x.keeping --config mini --work state

Dimension key: I images · S features · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from rebus.mini.bank import IndexBatches
from rebus.papers.seed_x.decoder_training import KEEPING, SECOND, DecoderTraining, edit_figures
from rebus.papers.seed_x.detokenizer import EDITOR, SeedXDetokenizer, SeedXDetokenizerConfig
from rebus.papers.seed_x.edit_bank import EditBankConfig, Seen
from rebus.train import Losses, Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """How it is learned what is kept."""

    detokenizer: SeedXDetokenizerConfig = EDITOR
    """The image decoder, with a network that says what is kept."""
    bank: EditBankConfig = field(default_factory=EditBankConfig)
    """The edits."""
    blurred: float = 0.5
    """Share of edits whose features are drawn towards the mean and made noisy."""
    batch: int = 128
    """Edits of one step."""
    lr: float = 2e-3
    """Peak learning rate."""
    optim: Optim = field(default_factory=lambda: Optim(steps=900, warmup=50, weight_decay=0.01, min_lr_ratio=0.02))
    """Optimiser and schedule."""
    seed: int = 0
    """Order of the edits."""


CONFIGS = {"mini": Config()}


class Keeping(DecoderTraining):
    """The image decoder, of which the network learns that says what is kept."""

    def kept_losses(self, x_ISC: Tensor, source_Ichw: Tensor, same_I1hw: Tensor) -> Losses:
        """Features of targets, latents of sources, and where these are the same."""
        model = self.detokenizer
        assert model.keep is not None
        with torch.no_grad():
            draft_Ichw = model.draft(self.blur(x_ISC))
        logits_I1hw = model.keep(draft_Ichw, source_Ichw)
        loss = F.binary_cross_entropy_with_logits(logits_I1hw, same_I1hw)
        right = ((logits_I1hw > 0) == (same_I1hw > 0.5)).float().mean()
        return Losses(loss, {"right": right})


def same_places(masks_Ihw: Tensor, side: int) -> Tensor:
    """Places of a latent [I, 1, side, side] nothing of which lies in a mask: 1."""
    return 1 - F.adaptive_max_pool2d(masks_Ihw[:, None].float(), side)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed_x.detokenizer2` needs, and its weights, under `work`."""
    torch.manual_seed(config.seed)
    seen = Seen(work, config.detokenizer.strip, config.bank)
    model = SeedXDetokenizer(config.detokenizer)
    model.codec.load_state_dict(seen.data.codec.state_dict())
    held = load_file(work / SECOND / "weights.safetensors")
    model.load_state_dict({name.removeprefix("detokenizer."): x.float() for name, x in held.items()}, strict=False)
    side = config.detokenizer.denoiser.side

    def losses(module: Keeping, split: str, i: np.ndarray) -> Losses:
        _, x_ISC, source = seen.edited(split, i)
        masks_Ihw = torch.from_numpy(np.array(seen.banks[split].masks_Ihw[i]))
        return module.kept_losses(x_ISC, source, same_places(masks_Ihw, side))

    def evaluate() -> Iterator[tuple[str, float]]:
        some = np.arange(min(64, len(seen.banks["val"])))
        yield "val/right", float(losses(module, "val", some).parts["right"])
        yield from edit_figures(model, seen)

    module = Keeping(model, untold=0.0, blurred=config.blurred, examples_ISC=seen.examples())
    return Stage(
        name=KEEPING,
        module=module,
        step=lambda module, i: losses(module, "train", i),
        trainable=[Trainable("detokenizer.keep.*", config.lr)],
        data=IndexBatches(len(seen.banks["train"]), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
