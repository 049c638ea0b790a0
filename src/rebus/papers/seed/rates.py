"""What of a SEED language model learns at which rate."""

from __future__ import annotations

from rebus.nn.text_model import TextModel
from rebus.papers.seed.language import image_codes
from rebus.train import Trainable

WORDS = {name: f"lm.llm.codes.{name}.*" for name in ("reads", "draws")}
"""What reads codes as words and what draws from words, which are fitted before."""


def fitted_rates(llm: TextModel, word_lr: float) -> list[Trainable]:
    """Those of what was fitted before, of what there is."""
    codes = image_codes(llm)
    words = {} if codes is None else {"reads": codes.reads, "draws": codes.draws}
    return [Trainable(WORDS[name], word_lr) for name, part in words.items() if part is not None]


def code_rates(llm: TextModel, lr: float, word_lr: float) -> list[Trainable]:
    """What the language model knows of codes that add up, where it knows anything: what was fitted before at a rate of its own."""
    codes, fitted = image_codes(llm), fitted_rates(llm, word_lr)
    if codes is None or codes.draws is None:
        return fitted
    said = [Trainable("lm.llm.codes.draws.*_K*", lr)] if codes.draws.config.apart else []
    return [*said, *fitted, *(Trainable(f"lm.llm.codes.{part}", lr) for part in ("beside.*", "sharpness"))]


def row_rates(row_lr: float, read_row_lr: float | None) -> list[Trainable]:
    """New rows, those that are read at a rate of their own where there is one."""
    read = [] if read_row_lr is None else [Trainable("lm.llm.rows.input.*", read_row_lr)]
    return [*read, Trainable("lm.llm.rows.*", row_lr)]
