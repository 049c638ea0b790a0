"""The vocabularies and templates of LaVIT's variants: which ids are codes and marks, what stands around messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rebus.grammar import CHATML, Template


@dataclass(frozen=True)
class LavitGrammarConfig:
    """Vocabulary and templates of a variant; the defaults are the published LaVIT's, on LLaMA's 32,000 pieces."""

    codes: int = 16384
    """Entries of the visual vocabulary."""
    patches: int = 256
    """Most tokens of an image that is read or learned."""
    fewest: int = 20
    """Fewest codes of an image that is drawn (the published code's `min_new_tokens`)."""
    most: int = 200
    """Most codes of an image that is drawn (the published code's `max_new_tokens`)."""
    end: Literal["word", "first"] = "word"
    """How it is chosen whether an image ends: the closing mark is one `word` among the codes (the published code), or is
    decided on `first`, by its own probability."""
    begin_image: int = 32000
    """Id of the opening mark."""
    end_image: int = 32001
    """Id of the closing mark."""
    first_code: int = 32002
    """Id of code 0; code k is the word first_code + k."""
    bos: str | None = None
    """Name of the word that begins a document. LaVIT has none."""
    eos: str = "</s>"
    """Name of the word that ends a reply."""
    pad: str = "</s>"
    """Name of the word that fills rows."""
    chat: Template = Template(end="</s>")
    """Template of questions and wishes. LaVIT was not tuned to chat: a wish is bare text, and a reply follows what was
    said without a word between."""
    question: tuple[str, str] = ("Question: ", " Answer:")
    """What stands around the text of a user's message that is answered in words (`chat` only)."""
    plain: Template = Template(end="</s>")
    """Pre-training template."""
    wish: Literal["codes", "vectors"] = "codes"
    """How the images of a wish for an image are written: as codes (the published code), or as vectors like all others."""
    wish_marks: bool = True
    """Whether the codes of such an image stand between marks, as images do in training. The published code leaves the
    marks out."""
    visual_loss: bool = True
    """Whether the loss of pre-training falls on the codes of images that are read as vectors (section 3.2 says "at each
    location for both modalities"; the successor's code, Video-LaVIT, puts none there)."""


def mini(words: int, codes: int, patches: int, *, fewest: int, most: int) -> LavitGrammarConfig:
    """The spelling on SmolLM2's or a byte vocabulary: ChatML, new words behind it in LaVIT's order, marks first."""
    return LavitGrammarConfig(
        codes=codes,
        patches=patches,
        fewest=fewest,
        most=most,
        end="first",
        begin_image=words,
        end_image=words + 1,
        first_code=words + 2,
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat=CHATML,
        question=("", ""),
        plain=Template(begin="<|endoftext|>", end="<|im_end|>"),
    )
