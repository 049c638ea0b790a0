"""SEED-X's image in one pass: as word by word, and alone as in company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny

from rebus.document import Document, user
from rebus.generate import Decoder
from rebus.grammar import Allow, Force
from rebus.narrate import Span
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.sampling import Sampling
from rebus.system import System, load


class WordByWord(SeedXGrammar):
    """The same grammar, which leaves every word of an image to be chosen, from one alone."""

    def next(self, reply: list[int], modality: Any, left: int) -> Allow | Force:
        action = super().next(reply, modality, left)
        own = (self.config.begin_image, *self.config.slot_words, self.config.end_image)
        if isinstance(action, Allow) or action.run[0] not in own:
            return action
        only_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        only_V[action.run[0]] = True
        return Allow(only_V)


def drawn(system: System, grammar: SeedXGrammar, modality: Any, seed: int) -> tuple[list[int], list[torch.Tensor], int]:
    """The words of a reply, the features of its images, and how often the model was asked."""
    passes: list[None] = []
    reading = system.lm.read
    document = Document((user("A red cat."),))
    prompt = grammar.serialize(document, reply=modality)
    decoder = Decoder(system.lm, grammar, rows=1, capacity=len(prompt) + 40)
    # within an image nothing is drawn by lot, so that what follows sees the same dice
    sampling = Sampling(max_new_tokens=40, temperature=1.0, image_temperature=0.0)
    system.lm.read = lambda *given: (passes.append(None), reading(*given))[1]  # type: ignore[method-assign]
    try:
        reply = decoder.add(prompt, modality=modality, sampling=sampling, generator=tiny.generator(seed))
        images = []
        while not decoder.idle:
            for _, event in decoder.step():
                if isinstance(event, Span) and event.hidden_ND is not None:
                    images.append(system.lm.output_projector(event.hidden_ND).x_WNC)
    finally:
        del system.lm.read
    return reply.ids, images, len(passes)


@pytest.mark.parametrize("modality", ["image", "any"])
def test_an_image_in_one_pass_is_the_image_word_by_word(modality: str) -> None:
    system = tiny.fresh("seed_x")
    one = system.grammar
    stepped = WordByWord(one.text, one.config, one.source)
    counted = 0
    with torch.no_grad():  # the mark's scores are extreme, so that some replies hold images
        system.lm.llm.rows.output.weight_VD[one.special.begin_image - system.lm.llm.words] *= 20
    for seed in range(3):
        words, images, passes = drawn(system, one, modality, seed)
        same_words, same_images, more = drawn(system, stepped, modality, seed)
        assert words == same_words and len(images) == len(same_images)
        for image, other in zip(images, same_images, strict=True):
            torch.testing.assert_close(image, other, atol=3e-5, rtol=1e-4)
        counted += len(images)
        if modality == "image":  # prompt and image together, against a pass for each word but the last
            assert passes == 1 and more == len(words) - 1
    assert counted


def test_the_published_replies_are_a_setting() -> None:
    assert load("seed_x:tiny", official=True, parts=("lm",)).grammar.config.replies == "free"
    assert load("seed_x:tiny", parts=("lm",)).grammar.config.replies == "whole"
