"""A small battery for a language model in training: does it still know pictures by their words, words by their pictures, and
plain text? Nothing is generated, so it takes seconds, asks the same every time, and needs no image decoder.

Dimension key: N sequences
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import torch

from rebus.data.emoji import EmojiDocuments
from rebus.data.pictures import Pictures
from rebus.document import Document
from rebus.evals.exam import generator
from rebus.evals.text_kept import perplexity
from rebus.grammar import TemplateName
from rebus.lm import log_likelihoods
from rebus.sequence import collate
from rebus.system import System, encode
from rebus.train import Gate, Margin

CHOICES = 4
"""Replies that each document is given; chance finds its own one time in as many."""
ITEMS = 32
"""Documents of each kind."""
TEXTS = 6
"""Plain texts."""


@dataclass(frozen=True)
class GateConfig:
    """A gate of a language stage on the embedded data: what it may lose of captions, drawings and plain text."""

    every: int | None = None
    """Steps between two measurements; none: nothing is watched."""
    then: Literal["stop", "warn"] = "stop"
    """What happens when a figure falls too far: the run ends with the last good weights, or it is only said."""
    chosen: float = 0.2
    """Largest fall of the share of captions, and of drawings, that are chosen among four, from the best of the run."""
    perplexity: float = 1.0
    """Largest rise of the perplexity on plain text from the best of the run, as a share of it. (The weights of seed:mini
    have 168 where their base has 36: pictures were bought with words, and 1.0 would have stopped that.)"""


def battery(
    system: System, documents: Mapping[str, Sequence[Document]], *, template: TemplateName = "chat", texts: int = TEXTS
) -> Iterator[tuple[str, float]]:
    """`NAME/chosen` for each set of documents, `text_kept/perplexity` on text written for that."""
    for name, some in documents.items():
        yield f"{name}/chosen", chosen(system, some, template=template)
    plain = json.loads(files("rebus.evals").joinpath("plain_text.json").read_text())
    yield "text_kept/perplexity", perplexity(system, plain["held_back"][:texts])


@torch.no_grad()
def chosen(system: System, documents: Sequence[Document], *, template: TemplateName = "chat") -> float:
    """How often a document's own reply is likelier, by its mean word, than those of its CHOICES - 1 neighbours. Documents are
    a message and a reply, in words or codes."""
    grammar, lm = system.grammar, system.lm
    if system.tokenizer is not None:
        images = sum(len(document.images) for document in documents)
        dice = [generator(0, number) for number in range(images)]
        documents = encode(system.tokenizer, documents, replies="generation", generators=dice)
    right = 0
    for start in range(0, len(documents), CHOICES):
        group = documents[start : start + CHOICES]
        for number, asked in enumerate(group):
            answered = [Document((*asked.messages[:-1], other.messages[-1])) for other in group]
            words = [grammar.serialize(document, template=template, loss="reply") for document in answered]
            lengths = torch.tensor([sum(one.target[1:]) for one in words])
            batch = collate(words, pad_id=grammar.special.pad).to(lm.llm.device)
            right += int((log_likelihoods(lm, batch).cpu() / lengths).argmax()) == number
    return right / len(documents)


def ability_gates(
    config: GateConfig, system: System, pictures: Pictures, kinds: Mapping[str, str], *, template: TemplateName
) -> list[Gate]:
    """The gate of a language stage on the embedded data, or none: `kinds` says which kind of its documents is asked as
    `caption`, which as `draw`. All are of the training split: it is what was learned that must not be lost."""
    if config.every is None:
        return []
    sources = {name: EmojiDocuments(pictures, split="train", seed=1, mix={kind: 1.0}) for name, kind in kinds.items()}

    def measure() -> Iterator[tuple[str, float]]:
        documents = {name: [source[i] for i in range(ITEMS)] for name, source in sources.items()}
        yield from battery(system, documents, template=template)

    margins = {f"{name}/chosen": Margin(config.chosen) for name in kinds}
    margins["text_kept/perplexity"] = Margin(config.perplexity, "lower", relative=True)
    return [Gate(measure, config.every, margins, config.then)]
