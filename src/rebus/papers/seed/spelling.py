"""The vocabularies and templates of SEED's variants: which ids are codes and marks, what stands around messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rebus.errors import RebusError
from rebus.grammar import CHATML, LLAMA2, PLAIN, VICUNA, Template


@dataclass(frozen=True)
class SeedGrammarConfig:
    """Vocabulary and templates of a variant; the defaults are SEED-LLaMA 8B."""

    codes: int = 8192
    """Entries of the visual vocabulary."""
    per_image: int = 32
    """Codes of one image."""
    per_query: bool = False
    """Whether each place of an image has codes of its own, codes / per_image of them, as with the tokenizer's
    `codebook="per_query"` or `"residual"`; if not, any code may stand anywhere."""
    first_code: int = 32000
    """Id of code 0; code k is the word first_code + k."""
    begin_image: int = 40192
    """Id of the opening mark. Follows from the size of the vocabulary; `from_added_tokens` reads it from the release."""
    end_image: int = 40193
    """Id of the closing mark."""
    bos: str | None = "<s>"
    """Name of the word that begins a document."""
    eos: str = "</s>"
    """Name of the word that ends a reply."""
    pad: str = "<unk>"
    """Name of the word that fills rows."""
    chat: Template = VICUNA
    """Instruction template."""
    plain: Template = PLAIN
    """Pre-training template."""


def from_added_tokens(added: Mapping[str, int], config: SeedGrammarConfig | None = None) -> SeedGrammarConfig:
    """The config with the ids that a release's `added_tokens.json` gives to codes and marks.

    Raises RebusError when a token is missing or the codes are not consecutive.
    """
    config = config or SeedGrammarConfig()
    wanted = ["<img>", "</img>", *(f"<img_{code:05d}>" for code in range(config.codes))]
    missing = [name for name in wanted if name not in added]
    if missing:
        raise RebusError(
            f"The added tokens of a SEED release name {config.codes} codes and two marks, but {len(missing)} are missing "
            f"({', '.join(missing[:3])} …). Check that the file belongs to this variant."
        )
    first = added["<img_00000>"]
    moved = [code for code in range(config.codes) if added[f"<img_{code:05d}>"] != first + code]
    if moved:
        raise RebusError(
            f"SEED's codes follow each other in the vocabulary, but <img_{moved[0]:05d}> has id "
            f"{added[f'<img_{moved[0]:05d}>']} and not {first + moved[0]}. Check that the file belongs to this variant."
        )
    return replace(config, first_code=first, begin_image=added["<img>"], end_image=added["</img>"])


def after_words(words: int, codes: int, per_image: int = 32) -> SeedGrammarConfig:
    """New words behind a vocabulary of `words`: codes, then the two marks. The form of `from_added_tokens` otherwise."""
    return SeedGrammarConfig(
        codes=codes,
        per_image=per_image,
        first_code=words,
        begin_image=words + codes,
        end_image=words + codes + 1,
    )


def official(variant: Literal["8b", "14b", "v1"]) -> SeedGrammarConfig:
    """The spelling of a published variant. v1 is OPT-2.7B, whose exact spacing is not published; its strings are those
    that the project page shows, each followed by one space."""
    match variant:
        case "8b":
            return SeedGrammarConfig()
        case "14b":
            return SeedGrammarConfig(chat=LLAMA2)
        case "v1":
            plain = replace(V1_WORDS, begin="</s>", end="</s>")
            words = after_words(50272, 8192)
            return replace(words, bos="</s>", eos="</s>", pad="<pad>", chat=plain, plain=plain)


V1_WORDS = Template(caption="A photo of ", draw="Generate an image ")
"""What SEED v1 writes before a caption, and before the words that ask for an image."""


def v1_mini(words: int, codes: int, per_image: int = 32, *, per_query: bool = False) -> SeedGrammarConfig:
    """SEED v1's spelling on SmolLM2. It has no other than that of pre-training."""
    plain = replace(V1_WORDS, begin="<|endoftext|>", end="<|im_end|>")
    return replace(mini(words, codes, per_image, per_query=per_query), chat=plain, plain=plain)


def mini(words: int, codes: int, per_image: int = 32, *, per_query: bool = False) -> SeedGrammarConfig:
    """The spelling on SmolLM2: its own chat template, new words behind its vocabulary."""
    plain = Template(begin="<|endoftext|>", end="<|im_end|>")
    return replace(
        after_words(words, codes, per_image),
        per_query=per_query,
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat=CHATML,
        plain=plain,
    )
