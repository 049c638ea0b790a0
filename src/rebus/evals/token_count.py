"""How many tokens pictures have, of a tokenizer that chooses: whether the number is the picture's, and what it buys.

    tokens/mean … percentiles    how long pictures are, as the system reads them
    tokens/with_png_bytes …      whether pictures with more to see are longer
    tokens/between_variance …    how much lengths differ between pictures, and between draws of one picture
    tokens/at_8/psnr …           what is rebuilt from a budget of 8 tokens, 16, …

Dimension key: I pictures · D draws
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import PIL.Image
import torch
from torch import Tensor

from rebus.evals.complexity import correlation, gradient_energy, png_bytes
from rebus.evals.exam import Exam
from rebus.evals.figures import Curve, Figure, Found
from rebus.evals.nearest import choose
from rebus.evals.reconstruct import rebuilt_figures
from rebus.visual import Codes, VisualTokens

BUDGETS = (8, 16, 24, 40)
"""Tokens that a picture is given, one number after the other."""
DRAWS = 4
"""How often a choice that is drawn is drawn."""


@runtime_checkable
class Chooses(Protocol):
    """A tokenizer whose pictures have as many tokens as it chooses, and by `choose` as many as one says."""

    @property
    def patches(self) -> int:
        """The most tokens that a picture can have."""
        ...

    def choosing(self, selection: Any, budget: int | None = None) -> AbstractContextManager[None]:
        """Inside, patches are chosen in another way: `sample` draws, `topk` keeps `budget` of them."""
        ...


def token_count(exam: Exam) -> Iterator[Found]:
    """`tokens/…`, over the pictures that `codebook` reads for lengths, and those that `reconstruct` draws for budgets. Yields
    nothing for a tokenizer that does not choose."""
    tokenizer, config = exam.system.tokenizer, exam.config
    if not isinstance(tokenizer, Chooses):
        return
    rows = choose(exam.pictures, config.split, config.codebook_n, config.choice)
    pictures = [exam.pictures.image(row, 64) for row in rows]
    yield from _lengths(counts(exam.encode(pictures)), pictures, tokenizer.patches)
    few = pictures[: min(len(pictures), 5 * config.n)]
    yield from _draws(drawn_counts(exam, few))
    yield from _budgets(exam)


def counts(tokens: Sequence[VisualTokens]) -> Tensor:
    """The number of codes of each picture, [I]."""
    return torch.tensor([float(len(token.ids_N)) for token in tokens if isinstance(token, Codes)])


def _lengths(count_I: Tensor, pictures: Sequence[PIL.Image.Image], most: int) -> Iterator[Figure]:
    def figure(name: str, value: float, note: str = "") -> Figure:
        return Figure(f"tokens/{name}", (value,), len(count_I), better="", note=note)

    yield figure("mean", count_I.mean().item(), f"of {most} patches, chosen as the system chooses by itself")
    yield figure("deviation", count_I.std(correction=0).item())
    for percent in (5, 95):
        yield figure(f"percentile_{percent}", count_I.quantile(percent / 100).item())
    for name, size_I in (("png_bytes", png_bytes(pictures)), ("gradient_energy", gradient_energy(pictures))):
        note = f"Pearson correlation of the number of tokens with the picture's {name.replace('_', ' ')} at 64 px"
        yield figure(f"with_{name}", correlation(count_I, size_I), note)


def drawn_counts(exam: Exam, pictures: Sequence[PIL.Image.Image], draws: int = DRAWS) -> Tensor:
    """How many tokens each picture has in several draws of its patches, [I, D]."""
    tokenizer = exam.system.tokenizer
    assert isinstance(tokenizer, Chooses)
    with tokenizer.choosing("sample"):
        return torch.stack([counts(exam.encode(pictures, seed=draw)) for draw in range(draws)], 1)


def _draws(count_ID: Tensor) -> Iterator[Figure]:
    """Variance between pictures (free of what draws add to it) and between draws, and the former's share."""
    draws = count_ID.shape[1]
    within = count_ID.var(1, correction=1).mean().item()
    between = max(0.0, count_ID.mean(1).var(correction=1).item() - within / draws) if len(count_ID) > 1 else 0.0
    note = f"of the number of tokens when patches are drawn, as the published code does; {draws} draws of each picture"
    for name, value in (("between_variance", between), ("draw_variance", within)):
        yield Figure(f"tokens/{name}", (value,), len(count_ID), better="", note=note)
    share = between / max(between + within, 1e-9)
    about = "share of the variance that is the picture's; 0 is length by dice, 1 a length that is the picture's own"
    yield Figure("tokens/between_share", (share,), len(count_ID), note=about)


def _budgets(exam: Exam) -> Iterator[Found]:
    config, tokenizer = exam.config, exam.system.tokenizer
    assert isinstance(tokenizer, Chooses)
    rows = choose(exam.pictures, config.split, config.n, config.choice)
    originals = [exam.pictures.image(row, 64) for row in rows]
    budgets = [budget for budget in BUDGETS if budget <= tokenizer.patches]
    found: dict[str, list[Figure]] = {}
    for budget in budgets:
        with tokenizer.choosing("topk", budget):
            tokens = exam.encode(originals)
        runs = [exam.draw(tokens, seed) for seed in config.seeds]
        for figure in rebuilt_figures(exam, f"tokens/at_{budget}", rows, originals, runs):
            found.setdefault(figure.name.rpartition("/")[2], []).append(figure)
            yield figure
    yield Curve("tokens", "tokens of a picture", tuple(map(float, budgets)), found)
