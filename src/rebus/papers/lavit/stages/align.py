"""Before stage 2: images of one thing are read as their names are, in the lower layers of the language model (ours; mini only).

As `rebus.papers.seed.stages.align`, of which this is the same for an image that goes in as vectors: the projector learns beside
the lower layers' adapters.

    rebus train lavit.align --config mini --work state

Dimension key: I images · N patches · S patches and the class token · T kept patches of all images · L length · P places ·
C width · D language-model width
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rebus.mini.align import AlignConfig, NameStates, begun, lower, vector_states
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, named_tokens, take
from rebus.papers.lavit.bank import bank_tokenizer
from rebus.papers.lavit.language_training import LanguageTraining, begin
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.stages.stage2_language import start_projector
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Losses, Optim, Stage, Trainable

NAME = "lavit.align"


@dataclass(frozen=True)
class Config:
    """How reading is begun."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    copies: int = 4
    """How often each picture is there: as it is, and moved, turned and tinted."""
    batch: int = 128
    """Images of one step."""
    lr: float = 2e-3
    """Peak learning rate of the adapters of the lower layers."""
    visual_lr: float = 1e-3
    """Peak learning rate of the projector."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=600, warmup=0.05, min_lr_ratio=0.02, betas=(0.9, 0.95), weight_decay=0.01)
    )
    """Optimiser and schedule."""
    seed: int = 42
    """Order of the images and initial weights."""


CONFIGS = {"mini": Config()}


class Alignment(nn.Module):
    """The lower layers of the language model and its projector, and the states that they are to give of images."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: AlignConfig) -> None:
        super().__init__()
        self.lm, self.tokenizer = whole.lm, whole.tokenizer
        self.states = NameStates(whole.lm.llm, whole.grammar.text, names, config)
        before = [*begun(whole.grammar.text), whole.grammar.config.begin_image]
        self.before_B = nn.Buffer(torch.tensor(before), persistent=False)

    def read(self, x_INC: Tensor) -> Tensor:
        """States of the last places of images of these patches, [I, P, D]."""
        projector, llm, config = self.lm.input_projector, self.lm.llm, self.states.config
        assert isinstance(projector, LavitInputProjector)
        keep_IN = self.tokenizer.keep(x_INC)
        read_TD = projector.proj(projector.merger.kept(x_INC, keep_IN))
        kept = keep_IN.sum(1).tolist()
        # what stands behind an image's last vector is not seen by it
        x_ILD = pad_sequence(list(read_TD.split(kept)), batch_first=True).to(llm.dtype)
        before_IBD = llm.embed(self.before_B[None]).expand(len(x_ILD), -1, -1)
        x_ILD = torch.cat([before_IBD, x_ILD], 1)
        states_ILD = vector_states(lower(llm, config.depth), x_ILD, torch.arange(x_ILD.shape[1], device=x_ILD.device))
        ends_I = torch.tensor(kept, device=x_ILD.device) + len(self.before_B)
        last_IP = ends_I[:, None] + torch.arange(-config.places, 0, device=x_ILD.device)
        return states_ILD.gather(1, last_IP[..., None].expand(-1, -1, states_ILD.shape[2]))

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        states_IPD = self.read(x_INC.to(self.lm.llm.device))
        return self.states(states_IPD, name_I.to(states_IPD.device))


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision and both phases of stage 1 under `work`."""
    generator = torch.Generator().manual_seed(config.seed)
    data = Frozen(work)
    whole = begin(
        config.system,
        bank_tokenizer(config.system.tokenizer, data),
        template="plain",
        loss="reply",
        pack=None,
        visual_loss=False,
        selection="expected",
        base_dtype="bf16",
        generator=generator,
    )
    start_projector(whole, data, named=True)
    tokens, name_I, names = named_tokens(data, "train", copies=config.copies)
    module = Alignment(whole, names, config.align)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            seen, name, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
            if len(seen):
                losses = module(take(seen, np.arange(min(len(seen), 512)))[:, 1:], name[:512])
                yield f"{split}/contrast", losses.parts["contrast"].item()
                yield f"{split}/named", losses.parts["named"].item()

    return Stage(
        name=NAME,
        module=module,
        step=lambda module, i: module(take(tokens, i)[:, 1:], name_I[i]),
        trainable=[
            Trainable("lm.input_projector.*", config.visual_lr),
            *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
        ],
        data=IndexBatches(len(name_I), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
