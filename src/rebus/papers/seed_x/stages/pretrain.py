"""SEED-X's language model is pre-trained: it reads images of any size, points with boxes, and regresses features to draw
(section 3.2, appendices A and B).

Next-token training, and regression of image features, on captions in both directions, grounded captions, interleaved
pages, text in pictures, and text. LoRA beside seven projections, both projectors, the vectors that say where a view lies, norms,
word table and head; the vision encoder is frozen. The paper: Llama-2-chat-13B, 158 million samples, 48 H800 for ten days;
neither steps nor batch were published, these are those of the authors' later example.

    rebus train seed_x.pretrain --config mini --work state
    rebus train seed_x.pretrain --config paper --work state --data sets.json --vision qwen_vit_G.pt --base llama

With `--data`, a JSON file that says where each set of the table in `mixture.py` lies, it is trained on these.

What the published schedule does otherwise, each behind a setting: the rate moves with every batch, not with every step, so
that it rises again from the middle of a run on whose steps are of two batches (`optim.schedule="per_batch_cosine"`);
norms and single numbers decay too (`optim.decay="all"`); a caption that is too long for its row is read off its picture instead of
drawn after (`too_long="flip"`).

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from rebus.checkpoint import convert, load_module, read_tensors
from rebus.data.loader import Loader
from rebus.data.pairs import needed
from rebus.data.source_batches import SourceBatches, read_places
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig, ability_gates
from rebus.mini.frozen import Frozen
from rebus.mini.named_stage import read_stage
from rebus.nn.precision import BaseNumbers, dtype_of_base
from rebus.papers.seed_x import embedded
from rebus.papers.seed_x.beginnings import begin_projectors, begin_way_out
from rebus.papers.seed_x.build import assemble
from rebus.papers.seed_x.convert import vision_rules
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LanguageConfig, base_language, smooth_locations
from rebus.papers.seed_x.language_training import NORMS, TABLES, LanguageTraining, TooLong, fitted_parts, trainable
from rebus.papers.seed_x.mixture import PRETRAIN
from rebus.papers.seed_x.templates import TEMPLATES
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import LEARNING_17B, MINI, SeedXConfig
from rebus.papers.seed_x.vision import VisionConfig
from rebus.system import System
from rebus.train import Evaluation, Gate, Optim, Stage, parallel

NAME = "seed_x.pretrain"


@dataclass(frozen=True)
class Config:
    """Pre-training; the defaults are the paper's where it says them."""

    system: SeedXConfig = LEARNING_17B
    """The system whose language model is trained."""
    projector_start: Literal["random", "captions", "names", "aligned"] = "random"
    """Embedded data only: how the projectors begin: as noise (the paper), or so that each query looks at its own place, what it
    finds points to the words of `captions` or to the `names` of what is shown, and what is drawn begins as the mean of all
    pictures. `aligned`: so, but ways and adapters as `seed_x.naming` and `seed_x.drawing` left them."""
    moved: float = 0.0
    """Embedded data only: share of the pictures that are read which are moved, turned and tinted a little, anew each time;
    never of edits, whose target shows what the source does."""
    locations: Literal["mean", "smooth"] = "mean"
    """How the rows of locations begin: all as the mean of the old rows (the published code), or so that neighbours are
    alike, from which a short run learns to point."""
    mix: Mapping[str, float] = field(default_factory=lambda: embedded.PRETRAIN)
    """Embedded data only: share of each kind of document."""
    batch: int = 28
    """Embedded data only: documents of one step."""
    source_batch: int | None = None
    """A user's sets only: documents of a batch; none: as many as the table says for its source."""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    one_view: float = 0.0
    """Share of pictures that are read whole although they would be cut into views."""
    page_read: float = 0.5
    """Share of the pictures of an interleaved page that are read, while the others are drawn (not published)."""
    too_long: TooLong = "drop"
    """What becomes of a caption that does not fit with its picture: dropped and counted, or (`flip`, the published loader)
    read off the picture."""
    remember: int = 0
    """Pictures whose features are kept in memory."""
    measured: int = 32
    """Embedded data only: documents of each kind that are measured."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of what is frozen of the base model. All that learns is float32 in both."""
    lr: float = 1e-4
    """Peak learning rate of adapters, projectors and what is trained in full."""
    row_lr: float = 1e-4
    """Peak learning rate of the rows of new words."""
    word_lr: float = 1e-6
    """Peak learning rate of what reads views as words and draws from words, where the system has that (the mini): so low that it stays
    as it was fitted."""
    in_full: tuple[str, ...] = (*NORMS, *TABLES)
    """Patterns of the base model's own parameters that are trained beside the adapters: norms, word table and head. (The
    mini trains the norms.)"""
    full_lr: float | None = None
    """Peak learning rate of these; none: as the adapters. Where adapters learn fast, norms would be worn down: a small
    model's are of a size that a hundred steps at such a rate make anew."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=100_000,
            warmup=500,
            min_lr_ratio=0.05,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            clip=1.0,
            accumulate=2,
        )
    )
    """Optimiser and schedule."""
    gates: GateConfig = field(default_factory=GateConfig)
    """Embedded data only: what the run must not lose of captions and plain text. (Drawings are regressed: they have no
    likelihood to choose by.)"""
    seed: int = 42
    """Order of the documents and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        system=MINI,
        locations="smooth",
        batch=16,
        pack=128,
        one_view=0.7,
        moved=0.6,
        projector_start="aligned",
        remember=4096,
        base_dtype="auto",
        lr=1e-3,
        row_lr=2e-3,
        in_full=NORMS,
        full_lr=5e-5,
        optim=Optim(steps=1800, warmup=0.03, min_lr_ratio=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
    ),
}


def stage(
    config: Config, work: Path, data: Path | None = None, vision: Path | None = None, base: Path | None = None
) -> Stage:
    """With `data` it needs the vision encoder's file `vision`, and a folder as `base` where the config's is not one;
    without, `work/emoji` and the weights of mini.vision under `work`. Raises RebusError for what does not fit."""
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer = SeedXTokenizer(config.system.tokenizer, generator=generator)
    if data is not None:
        load_vision(tokenizer, vision)
    else:
        tokenizer.vision.trunk.load_state_dict(Frozen(work).vision.vit.state_dict())
    module = fresh(config, tokenizer, base, generator)
    if data is None and config.projector_start == "aligned":
        begin_way_out(module, Frozen(work), generator)
        for before in ("seed_x.naming", "seed_x.drawing"):
            read_stage(module, work / before)
    elif data is None and config.projector_start != "random":
        begin_projectors(module, Frozen(work), generator, named=config.projector_start == "names")
    evals: list[Evaluation] = []
    gates: list[Gate] = []
    if data is not None:
        places = read_places(data, PRETRAIN)
        batches: SourceBatches | Loader = SourceBatches(
            PRETRAIN,
            places,
            TEMPLATES,
            batch=config.source_batch,
            seed=config.seed,
            rank=parallel.rank(),
            world=parallel.world_size(),
        )
    else:
        pictures, lines = embedded.read_embedded(work)
        mixture = embedded.documents(pictures, lines, "train", config.seed, config.mix, moved=config.moved)
        batches = Loader(mixture, **parallel.sharded(config.batch))

        def evaluate() -> Iterator[tuple[str, float]]:
            for split in ("train", "val"):
                for kind in ("caption", "draw", "scene_boxes"):
                    some = embedded.documents(pictures, lines, split, 1, {kind: 1.0})
                    yield from figures(module, f"{split}/{kind}", [some[i] for i in range(config.measured)])

        evals = [evaluate]
        system = System(module.grammar, module.lm, tokenizer)
        gates = ability_gates(config.gates, system, pictures, {"caption": "caption"}, template="plain")
    return Stage(
        name=NAME,
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=trainable(
            config.lr,
            config.row_lr,
            config.in_full,
            config.full_lr,
            fitted_parts(module.lm, config.word_lr),
        ),
        data=batches,
        evals=evals,
        gates=gates,
        optim=config.optim,
        config=config,
        generators={"choices": module.generator},
    )


def fresh(config: Config, tokenizer: SeedXTokenizer, base: Path | None, generator: torch.Generator) -> LanguageTraining:
    """The base language model with new rows, adapters and projectors that have learned nothing yet. Raises RebusError for
    a system whose language model has no rows of its own."""
    system = config.system
    if not isinstance(system.language, LanguageConfig):
        raise RebusError(
            "A merged language model has no rows for new words to train, but this system's is one. Give the stage a "
            "`language` that names its folder as `base`."
        )
    if base is not None:
        system = replace(system, language=replace(system.language, base=str(base)))
    assert isinstance(system.language, LanguageConfig)
    dtype = dtype_of_base(config.base_dtype)
    llm, text = base_language(system.language, dtype=dtype, generator=generator)
    if config.locations == "smooth":
        smooth_locations(llm, system.grammar.first_location, system.grammar.locations, generator)
    return LanguageTraining(
        assemble(system, llm, tokenizer.source, generator),
        tokenizer,
        SeedXGrammar(text, system.grammar, tokenizer.source),
        template="plain",
        pack=config.pack,
        one_view=config.one_view,
        page_read=config.page_read,
        too_long=config.too_long,
        remember=config.remember,
        generator=torch.Generator().manual_seed(config.seed),
    )


def load_vision(tokenizer: SeedXTokenizer, file: Path | None) -> None:
    """Fills the vision encoder from its published file. Raises RebusError when none was named, or it does not fit."""
    file = needed("vision", file, "the vision encoder's weights (qwen_vit_G.pt)")
    config = tokenizer.config.vision
    if not isinstance(config, VisionConfig):
        raise RebusError(
            "A user's sets are read with Qwen-VL's vision encoder, but this system has another. Use the system of a "
            "published variant."
        )
    load_module(
        tokenizer.vision,
        convert(read_tensors(file), vision_rules(config.trunk.heads), tokenizer.vision.state_dict()).tensors,
    )


def figures(module: LanguageTraining, name: str, documents: list) -> Iterator[tuple[str, float]]:
    """The losses of some documents: words, and where images are drawn their features."""
    losses = module(documents)
    yield name, losses.text.item()
    if losses.image is not None:
        yield f"{name} features", losses.image.item()
