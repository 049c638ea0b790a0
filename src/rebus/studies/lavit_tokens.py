"""Does it help that LaVIT chooses patches and merges the others into them? At equal tokens, parameters, steps and data
(2309.04669 section 3.1, and what its public reviewers asked).

Every arm turns the frozen vision encoder's patches into about as many tokens, squeezes each to the width of a code, and the
same decoder rebuilds all patches. Choices: learned, at random, on a grid, by norm. Mergers: whole, without attention to the
dropped patches, none. Encoders that choose nothing: pooled patches, learned queries. And the learned choice with a codebook.
With `--language` the three most telling arms also have a language model read their tokens.

    rebus study lavit-tokens --work state --out state/study-lavit-tokens --docs docs/studies

Dimension key: I images · N patches · C width
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.nn.precision import fast_dtype
from rebus.studies import lavit_language, lavit_verdict
from rebus.studies.arms import Arm, Measure, Record, Report, plot, run_arms, table
from rebus.studies.lavit_arms import KINDS, Config, TokensArm
from rebus.studies.lavit_figures import MEASURES, measured
from rebus.studies.limit import affordable, fit_within
from rebus.studies.verdict import best_of, write_document
from rebus.train import Losses, Optim, Stage

NAME = "lavit_tokens"
STEPS = Measure("steps", "steps taken", "")


class Study:
    """The arms, their budget and their records."""

    def __init__(self, config: Config, work: Path, out: Path, report: Report) -> None:
        self.config, self.work, self.out, self.report = config, work, out, report

    @cached_property
    def data(self) -> Frozen:
        """Cached features of the frozen parts."""
        return Frozen(self.work)

    # -------------------------------------------------------------------------------------- an arm

    @cached_property
    def steps(self) -> int:
        """Steps of every arm: as many as asked for, fewer where the slowest would take too long."""
        arm = TokensArm("learned", self.config, 0)
        stage = self.stage(arm, 0, self.config.steps)
        optimiser = torch.optim.AdamW([p for p in arm.parameters() if p.requires_grad], lr=1e-6)
        batches = iter(stage.data)

        def step() -> float:
            begun = time.monotonic()
            with torch.autocast("cpu", fast_dtype("cpu")):  # as it is trained
                total = stage.step(arm, next(batches)).total
            total.backward()
            optimiser.step()
            return time.monotonic() - begun

        config = self.config
        return affordable(self.out, "arms", config.steps, config.minutes, step)

    def features(self, i: np.ndarray) -> Tensor:
        """x_INC of training pictures."""
        return self.data.rows("train", i, "tokens")[0][:, 1:]

    def stage(self, arm: TokensArm, seed: int, steps: int) -> Stage:
        """An arm's training."""

        def step(arm: TokensArm, i: np.ndarray) -> Losses:
            done = int(arm.done)
            if arm.kind == "codes" and done == arm.switch:
                arm.begin_codes(self.features(np.arange(min(1024, len(self.data.bank("train"))))))
            noise = 1.0 if 2 * done < steps else 0.0  # the second half without dice, as it is measured
            arm.done += 1
            return arm.losses(self.features(i), arm.generator, noise=noise)

        return Stage(
            name=arm.kind,
            module=arm,
            step=step,
            trainable=arm.learned(),
            data=IndexBatches(len(self.data.bank("train")), self.config.batch, seed=seed),
            optim=Optim(steps=steps, warmup=0.06, min_lr_ratio=0.02, betas=(0.9, 0.99), weight_decay=0.01),
            config=self.config,
            generators={"choice": arm.generator},
        )

    def trained(self, kind: str, seed: int, folder: Path) -> tuple[TokensArm, int]:
        """One arm, trained from nothing, and the steps that it took."""
        arm = TokensArm(kind, replace(self.config, steps=self.steps), seed)
        stage = self.stage(arm, seed, self.steps)
        options = {"device": "cpu", "seed": seed, "log_every": 50, "save_every": 10 * self.steps}
        return arm, fit_within(stage, folder, self.config.minutes, **options)

    def arms(self) -> list[Arm]:
        """All of them."""

        def arm(kind: str) -> Callable[[int, Path], Mapping[str, float]]:
            def run(seed: int, folder: Path) -> Mapping[str, float]:
                made, taken = self.trained(kind, seed, folder)
                return {**measured(made, self.data, self.config.n), "steps": float(taken)}

            return run

        return [Arm(kind, title, arm(kind)) for kind, title in KINDS.items()]

    # -------------------------------------------------------------------------------------- language models

    def telling(self, records: list[Record]) -> list[str]:
        """The three arms that say most: LaVIT's, the best of the choices that are not learned, and the best encoder that
        chooses nothing."""
        rivals = (lavit_verdict.UNLEARNED, lavit_verdict.ENCODERS)
        return ["learned", *(best_of(records, rival, "at_budget") for rival in rivals)]

    def read(self, kind: str, seed: int, folder: Path) -> Mapping[str, float]:
        """What a language model learns to say from the tokens of an arm that has been trained."""
        config = self.config
        arm = TokensArm(kind, replace(config, steps=self.steps), seed)
        weights = self.out / f"{kind}-{seed}" / "weights.safetensors"
        if not weights.exists():
            raise RebusError(
                f"A language model reads the arm {kind!r} with seed {seed}, whose weights {weights} are not there. "
                f"Delete {weights.parent.name}.json beside it, so that the arm is trained again."
            )
        arm.load_state_dict(load_file(weights), strict=False)
        bank = self.data.bank("train")
        shown = lavit_language.seen(arm, self.data, "train", self.data.singles("train", len(bank)))
        reader = lavit_language.Reader(config, config.loss.tokenizer.merger.width, seed)
        stage = lavit_language.reading(config, reader, shown, config.language_steps, seed)
        options = {"device": "cpu", "seed": seed, "log_every": 20, "save_every": 10 * config.language_steps}
        taken = fit_within(stage, folder, config.language_minutes, **options)
        unseen = lavit_language.seen(arm, self.data, "val", self.data.singles("val", config.language_n))
        return {**lavit_language.asked(reader, unseen), "steps": float(taken)}

    def readers(self, records: list[Record]) -> list[Arm]:
        """The language models."""

        def arm(kind: str) -> Callable[[int, Path], Mapping[str, float]]:
            return lambda seed, folder: self.read(kind, seed, folder)

        return [Arm(f"language-{kind}", KINDS[kind], arm(kind)) for kind in self.telling(records)]

    # -------------------------------------------------------------------------------------- all of it

    def recipe(self) -> dict[str, object]:
        """How records are made. Whether a language model reads, and how, changes nothing about the arms."""
        held = {k: v for k, v in asdict(self.config).items() if not k.startswith("language") and k != "base"}
        return {**held, "steps": self.steps}

    def run(self, seeds: tuple[int, ...]) -> list[Record]:
        """All arms with all seeds; what is on disk is not run again."""
        return run_arms(self.arms(), seeds, self.out, recipe=self.recipe(), report=self.report)

    def write(self, records: list[Record], docs: Path | None) -> str:
        """Tables, plots and the verdict, under `out` and, where it is given, under `docs`. Returns the tables."""
        arms, measures = self.arms(), (*MEASURES, STEPS)
        tables = table(arms, measures, records)
        plots: dict[str, tuple[list[Arm], Sequence[Measure], list[Record]]] = {NAME: (arms, MEASURES, records)}
        if self.config.language:
            readers = self.readers(records)
            recipe = {k: v for k, v in asdict(self.config).items() if k.startswith("language") or k == "base"}
            made = {**self.recipe(), **recipe}
            read = run_arms(readers, (records[0].seed,), self.out, recipe=made, report=self.report)
            tables += "\n\nA language model that reads the tokens, one seed:\n\n"
            tables += table(readers, lavit_language.MEASURES, read)
            plots[f"{NAME}_language"] = (readers, lavit_language.MEASURES[:2], read)
        drawn: dict[str, bytes] = {}
        with contextlib.suppress(ImportError):  # plots need matplotlib, an extra
            drawn = {f"{name}.png": plot(*given) for name, given in plots.items()}
        config = self.config
        setting = {
            "steps": self.steps,
            "pictures of a step": config.batch,
            "tokens": config.budget,
            "patches": config.loss.decoder.patches,
            "pictures measured": min(config.n, len(self.data.singles("val", config.n))),
        }
        text = lavit_verdict.document(records, setting=setting, tables=tables, plots=list(drawn))
        write_document((self.out, docs), NAME, text, drawn)
        return text


def study(
    config: Config,
    work: Path,
    out: Path,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    report: Report = lambda line: None,
    docs: Path | None = None,
) -> str:
    """Runs what of the study is not yet on disk under `out`, writes `lavit_tokens.md` and its plots there and under `docs`, and
    returns the text; needs `rebus train mini.vision` under `work`."""
    whole = Study(config, work, out, report)
    return whole.write(whole.run(seeds), docs)
