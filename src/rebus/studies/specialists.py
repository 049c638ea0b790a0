"""One becomes three: is a model tuned for one speciality better at it than one model tuned for all? (2404.14396 section 3.3)

SEED-X tunes its base once for each speciality and has no model that does all of them, without saying what that gains. Here the
mini's base gets adapters of one size: one for chat, one for editing, one for both in half of the steps for each, and one for
both that is trained as long as the two together. All are measured on both specialities' held-out documents.

    rebus study specialists --work state --out state/study-specialists --docs docs/studies

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
from rebus.studies.arms import Arm, Measure, Record, Report, run_arms
from rebus.studies.verdict import Against, Finding, against, answer, overall, publish
from rebus.system import System
from rebus.train import Stage, fit

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


def findings(records: Sequence[Record]) -> list[Finding]:
    """For each figure: is the speciality's own adapter better than one for both?"""
    made = []
    for measure in MEASURES:
        own = "edit" if measure.name.startswith("edit") else "chat"
        higher = measure.better != "lower"
        compared = [against(records, own, other, measure.name, higher=higher) for other in ("both", "both_long")]
        words, yes = answer(
            overall(compared),
            "The specialist is better than one for both, even one that is trained as long as the two together.",
            "The specialist is worse than one for both, for as many steps and for twice as many.",
            f"{sides(compared)}.",
        )
        made.append(Finding(f"{measure.title}:", words, yes, tuple(f"{KINDS[c.other][0]}: {c}" for c in compared)))
    return made


def sides(compared: Sequence[Against]) -> str:
    """Words for where the rule does not say the same of all."""
    parts = [f"{c.says} than {KINDS[c.other][0]}" for c in compared if c.says in ("better", "worse")]
    parts += [f"no different from {KINDS[c.other][0]}" for c in compared if c.says == "no different"]
    return f"The specialist is {' and '.join(parts)}"


def conclusion(found: Sequence[Finding]) -> str:
    """Whether one should become three, from the findings."""
    said = [finding.yes for finding in found]
    if None in said:
        return "One seed is no evidence. Run the study with three seeds."
    if all(said):
        return "Yes, one becomes three: by every figure a specialist beats one adapter for both, at equal steps and at twice as many."
    if any(said):
        better = [finding.question.rstrip(":") for finding in found if finding.yes]
        return f"In part: a specialist beats one adapter for both, at equal steps and at twice as many, only in {'; '.join(better)}."
    return "No: by no figure does a specialist beat both one adapter for both at equal steps and one at twice as many."


def study(
    config: Config,
    work: Path,
    out: Path,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    report: Report = lambda line: None,
    docs: Path | None = None,
) -> str:
    """Runs what of the study is not yet on disk under `out`, writes `specialists.md` and its plot there and under `docs`, and
    returns the text; needs `work/emoji` and a saved base (`rebus pack seed_x:mini`)."""
    whole = Study(config, work, out, report)
    records = whole.run(seeds)
    found = findings(records)
    return publish(
        "specialists",
        (out, docs),
        whole.arms(),
        MEASURES,
        records,
        title="One becomes three: is a model tuned for one speciality better at it than one tuned for all?",
        conclusion=conclusion(found),
        found=found,
        setting={
            "steps of a specialist": config.steps,
            "documents of a step": config.batch,
            "documents measured of each kind": config.n,
            "scenes pointed at": config.points,
        },
    )
