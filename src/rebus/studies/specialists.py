"""One becomes three: is a model tuned for one speciality better at it than one model tuned for all? (2404.14396 section 3.3)

SEED-X tunes its base once for each speciality and has no model that does all of them, without saying what that gains. Here the
mini's base gets adapters of one size: one for chat, one for editing, one for both in half of the steps for each, and one for
both that is trained as long as the two together. All are measured on both specialities' held-out documents.

    rebus study specialists --work state --out state/study-specialists

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch

from rebus.data.emoji_pointing import one_of_a_kind
from rebus.data.loader import Loader
from rebus.data.scenes import exact_box, render
from rebus.data.selection import Selection
from rebus.document import Box, Document, Image, user
from rebus.evals.ground import first_box, overlap
from rebus.papers.seed_x import embedded
from rebus.papers.seed_x.language_training import LanguageTraining, trainable
from rebus.papers.seed_x.stages import instruct
from rebus.sampling import Sampling
from rebus.studies.arms import Arm, Measure, Record, Report, run_arms, summary, write_study
from rebus.system import System
from rebus.train import Stage, fit
from rebus.train.checkpointing import write_whole

MEASURES = (
    Measure("chat_words", "chat: nats per word of replies", "lower"),
    Measure("chat_features", "chat: error of drawn features", "lower"),
    Measure("pointed", "chat: boxes that overlap by half"),
    Measure("edit_features", "edit: error of drawn features", "lower"),
)
KINDS: Mapping[str, tuple[str, tuple[str, ...], int]] = {
    "chat": ("specialist for chat", ("chat",), 1),
    "edit": ("specialist for editing", ("edit",), 1),
    "both": ("one for both, as long as a specialist", ("chat", "edit"), 1),
    "both_long": ("one for both, as long as the two together", ("chat", "edit"), 2),
}
"""Of each arm its title, what it is tuned for, and how many times the steps it has."""


@dataclass(frozen=True)
class Config:
    """Budget of an arm."""

    base: str = ""
    """Folder of the saved base; empty: the embedded `seed_x-mini`."""
    steps: int = 400
    """Optimiser steps of a specialist. (About ten minutes on two CPU cores; the longest arm takes twice as long.)"""
    batch: int = 16
    """Documents of a step."""
    n: int = 48
    """Documents of split `val` that each kind is measured on."""
    points: int = 48
    """Scenes of split `val` in which something is to be pointed at."""
    tuning: instruct.Config = instruct.CONFIGS["mini"]
    """Everything else of instruction tuning, the same for all arms."""


class Study:
    """The arms and what they are measured on."""

    def __init__(self, config: Config, work: Path, out: Path, report: Report) -> None:
        self.config, self.work, self.out, self.report = config, work, out, report

    @cached_property
    def data(self) -> tuple[Any, Any]:
        """Pictures, and their line drawings where there are some."""
        return embedded.read_embedded(self.work)

    def mix(self, names: Sequence[str]) -> dict[str, float]:
        """The documents of some specialities, one as often as the other."""
        return {kind: share for name in names for kind, share in embedded.INSTRUCT[name].items()}

    def trained(self, kind: str, seed: int, folder: Path) -> LanguageTraining:
        """One arm, tuned from the base."""
        config = self.config
        _, names, times = KINDS[kind]
        tuning = replace(
            config.tuning, seed=seed, batch=config.batch, optim=replace(config.tuning.optim, steps=times * config.steps)
        )
        module, _ = instruct.begin(tuning, Path(config.base) if config.base else None)
        documents = embedded.documents(*self.data, "train", seed, self.mix(names))
        stage = Stage(
            name=f"specialists.{kind}",
            module=module,
            step=lambda module, batch: module(batch),
            trainable=trainable(tuning.lr, None, tuning.in_full),
            data=Loader(documents, config.batch),
            optim=tuning.optim,
            config=tuning,
            generators={"choices": module.generator},
        )
        fit(stage, folder, device="cpu", seed=seed, log_every=25, save_every=10 * times * config.steps)
        return module

    @torch.no_grad()
    def measured(self, module: LanguageTraining) -> dict[str, float]:
        """The figures of an arm."""
        module.eval()
        figures: dict[str, float] = {}
        for name in ("chat", "edit"):
            documents = embedded.documents(*self.data, "val", 1, self.mix([name]))
            losses = module([documents[i] for i in range(self.config.n)])
            figures[f"{name}_words"] = losses.text.item()
            figures[f"{name}_features"] = 0.0 if losses.image is None else losses.image.item()
        figures["pointed"] = self.pointed(module)
        return {measure.name: figures[measure.name] for measure in MEASURES}

    def pointed(self, module: LanguageTraining) -> float:
        """The share of things in scenes whose box is found."""
        selection, pictures = Selection(self.data[0], "val"), self.data[0]
        system = System(module.grammar, module.lm, module.tokenizer, name="specialist")
        documents: list[Document] = []
        boxes: list[Box] = []
        rng = Random("specialists")
        for _ in range(self.config.points):
            scene, placed = one_of_a_kind(selection, rng)
            asked = f"Where is the {pictures.label[placed.row]}?"
            documents.append(Document((user(Image(render(pictures, scene)), asked),)))
            boxes.append(exact_box(pictures, placed))
        said = system.generate(documents, modality="text", sampling=Sampling(max_new_tokens=12))
        right = [overlap(first_box(reply), box) >= 0.5 for reply, box in zip(said, boxes, strict=True)]
        return sum(right) / max(1, len(right))

    def arms(self) -> list[Arm]:
        """All of them."""

        def arm(kind: str) -> Callable[[int, Path], Mapping[str, float]]:
            return lambda seed, folder: self.measured(self.trained(kind, seed, folder))

        return [Arm(kind, title, arm(kind)) for kind, (title, _, _) in KINDS.items()]

    def run(self, seeds: tuple[int, ...]) -> list[Record]:
        """All arms with all seeds; what is on disk is not run again."""
        return run_arms(self.arms(), seeds, self.out, recipe=asdict(self.config), report=self.report)


def verdict(records: Sequence[Record]) -> list[str]:
    """For each figure, whether the speciality's own arm is better than one for both: by its range over the seeds, which must
    lie apart from the other's."""
    said = []
    for measure in MEASURES:
        own = measure.name.partition("_")[0] if measure.name != "pointed" else "chat"
        for other in ("both", "both_long"):
            mine, theirs = summary(records, own, measure.name), summary(records, other, measure.name)
            sign = -1 if measure.better == "lower" else 1
            if sign * (mine[0] - theirs[0]) > 0 and max(mine[1], theirs[1]) > min(mine[2], theirs[2]):
                word = "the specialist is better than"
            elif max(mine[1], theirs[1]) > min(mine[2], theirs[2]):
                word = "the specialist is worse than"
            else:
                word = "no difference beyond the seeds' to"
            said.append(f"- {measure.title}: {word} {KINDS[other][0]} ({mine[0]:.3g} against {theirs[0]:.3g})")
    return said


def study(
    config: Config, work: Path, out: Path, *, seeds: tuple[int, ...] = (0, 1, 2), report: Report = lambda line: None
) -> str:
    """Runs what of the study is not yet on disk under `out`, and returns its table and verdict; needs `work/emoji` and a saved
    base (`rebus pack seed_x:mini`)."""
    whole = Study(config, work, out, report)
    records = whole.run(seeds)
    text = write_study(out, whole.arms(), MEASURES, records) + "\n\n" + "\n".join(verdict(records))
    write_whole(out / "verdict.md", lambda file: file.write(f"{text}\n".encode()))
    return text
