"""The vocabularies and templates of SEED-X's variants: which ids are slots, marks and locations, what stands around
messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rebus.errors import RebusError
from rebus.grammar import CHATML, LLAMA2, PLAIN, Template

Replies = Literal["whole", "free"]

# The line break before a question is the question's, so a reply is followed by nothing of its own.
INSTRUCT = replace(LLAMA2, user=("[INST] ", " [/INST]\n"), draw="Generate an image: ")
"""Template of the instruction-tuned models."""
EDIT = replace(INSTRUCT, draw="")
"""Template of the model that edits, whose instructions stand alone."""
QUESTION = Template(begin="<s>", user=("Question: ", "\nAnswer:"), between="\n", end="</s>")
"""Template of the pre-trained model."""


@dataclass(frozen=True)
class SeedXGrammarConfig:
    """Vocabulary and templates of a variant; the defaults are the published SEED-X-I's, on LLaMA's 32,000 pieces."""

    slots: int = 64
    """Places of a view that is read, and of an image that is drawn."""
    vectors: int = 256
    """Vectors of a view, from which the slots are filled."""
    first_slot: int = 32000
    """Id of the first slot; all views and images have the same."""
    begin_image: int = 32100
    """Id of the mark before the thumbnail of an image that is read, and before one that is drawn."""
    end_image: int = 32101
    """Id of the mark after it."""
    begin_patch: int = 32102
    """Id of the mark before a tile."""
    end_patch: int = 32103
    """Id of the mark after it."""
    first_location: int = 32104
    """Id of location 0; location n is the word first_location + n."""
    locations: int = 224
    """Steps of an image's width or height that a box is told in."""
    begin_box: int = 32328
    """Id of the mark before a box."""
    end_box: int = 32329
    """Id of the mark after it."""
    bos: str | None = "<s>"
    """Name of the word that begins a document."""
    eos: str = "</s>"
    """Name of the word that ends a reply."""
    pad: str = "<unk>"
    """Name of the word that fills rows."""
    chat: Template = INSTRUCT
    """Instruction template. `between` stands after a reply, before the next message; `draw` before a wish for an image
    that holds no image itself."""
    plain: Template = PLAIN
    """Pre-training template."""
    replies: Replies = "whole"
    """Which words a reply may hold. `whole`: text, boxes of four locations and images that can be finished. `free`: any
    word but the slots and the mark after an image, as in the published code, in which a box may be cut off and an image
    too."""
    context: int = 4096
    """Most words that the language model reads at once; a longer document is refused."""

    @property
    def slot_words(self) -> tuple[int, ...]:
        """The slots, in order."""
        return tuple(range(self.first_slot, self.first_slot + self.slots))


def from_added_tokens(added: Mapping[str, int], config: SeedXGrammarConfig | None = None) -> SeedXGrammarConfig:
    """The config with the ids that a release's `added_tokens.json` gives to slots, marks and locations.

    Raises RebusError when a token is missing, or slots or locations do not follow each other.
    """
    config = config or SeedXGrammarConfig()
    slots = [f"<img_{slot:05d}>" for slot in range(config.slots)]
    locations = [f"<loc-{place}>" for place in range(config.locations)]
    marks = ["<img>", "</img>", "<patch>", "</patch>", "<box_start>", "<box_end>"]
    missing = [name for name in (*slots, *locations, *marks) if name not in added]
    if missing:
        raise RebusError(
            f"The added tokens of a SEED-X release name {config.slots} slots, {config.locations} locations and six marks, "
            f"but {len(missing)} are missing ({', '.join(missing[:3])} …). Check that the file belongs to this variant."
        )
    for names in (slots, locations):
        moved = [name for at, name in enumerate(names) if added[name] != added[names[0]] + at]
        if moved:
            raise RebusError(
                f"SEED-X's slots and locations follow each other in the vocabulary, but {moved[0]} has id "
                f"{added[moved[0]]} after {names[0]} with {added[names[0]]}. Check that the file belongs to this variant."
            )
    return replace(
        config,
        first_slot=added[slots[0]],
        first_location=added[locations[0]],
        begin_image=added["<img>"],
        end_image=added["</img>"],
        begin_patch=added["<patch>"],
        end_patch=added["</patch>"],
        begin_box=added["<box_start>"],
        end_box=added["<box_end>"],
    )


def added_tokens(config: SeedXGrammarConfig) -> dict[str, int]:
    """The inverse: the new words by name, as a release's `added_tokens.json` has them. Slots beyond those that are used
    have names as well (the release has 100)."""
    spare = config.begin_image - config.first_slot
    count = spare if spare > config.slots else config.slots
    return {
        **{f"<img_{slot:05d}>": config.first_slot + slot for slot in range(count)},
        "<img>": config.begin_image,
        "</img>": config.end_image,
        "<patch>": config.begin_patch,
        "</patch>": config.end_patch,
        **{f"<loc-{place}>": config.first_location + place for place in range(config.locations)},
        "<box_start>": config.begin_box,
        "<box_end>": config.end_box,
    }


def after_words(words: int, slots: int, locations: int = 224) -> SeedXGrammarConfig:
    """New words behind a vocabulary of `words`, in the release's order: slots, marks, locations, marks of boxes."""
    marks = words + slots
    return SeedXGrammarConfig(
        slots=slots,
        vectors=slots,
        first_slot=words,
        begin_image=marks,
        end_image=marks + 1,
        begin_patch=marks + 2,
        end_patch=marks + 3,
        first_location=marks + 4,
        locations=locations,
        begin_box=marks + 4 + locations,
        end_box=marks + 5 + locations,
    )


def new_words(slots: int, locations: int = 224) -> int:
    """How many words `after_words` adds."""
    return slots + locations + 6


def mini(words: int, slots: int, *, vectors: int, context: int, locations: int = 224) -> SeedXGrammarConfig:
    """The spelling on SmolLM2's or a byte vocabulary: its own chat template, new words behind its vocabulary."""
    # of ChatML's line breaks those after a user's words are the user's, as in `INSTRUCT`
    before, after = CHATML.user
    chat = replace(CHATML, system=(CHATML.system[0], CHATML.system[1] + "\n"), user=(before, after + "\n"))
    return replace(
        after_words(words, slots, locations),
        vectors=vectors,
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat=chat,
        plain=Template(begin="<|endoftext|>", end="<|im_end|>"),
        context=context,
    )
