"""Images that are read as the first words of what they show."""

from __future__ import annotations

import copy

import pytest
import torch
from tests import tiny

from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.mini.llm import read_base
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.nn.word_readings import WordFit, WordReadings, WordReadingsConfig, kept_parts, parts, words_of_names
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.variants import TINY as TINY_LAVIT
from rebus.papers.seed_x.projectors import SeedXInputProjector
from rebus.papers.seed_x.variants import TINY
from rebus.visual import Features

NAMES = ["bear", "boat", "elk", "cow"]
SMALL = WordReadingsConfig(grid=2, words=3, rank=5, names=6)


def language() -> TextModel:
    """A language model of width 32 that reads bytes."""
    return read_base(TINY.language.base)[0]


def random(config: WordReadingsConfig, width: int) -> WordReadings:
    """Layers of random numbers that tell four names apart."""
    readings, own = WordReadings(config, width), tiny.generator(0)
    with torch.no_grad():
        for x in (readings.down_SCR, readings.names_QR):
            x.normal_(generator=own)
        readings.words_QK[:4] = torch.tensor([[5, 8, 11], [5, 60, 61], [100, 8, 8], [200, 61, 5]])
    return readings


def test_parts_are_means_of_squares() -> None:
    x = torch.randn(2, 16, 3, generator=tiny.generator(0))
    found = parts(x, 2)
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found[:, 1], x[:, [2, 3, 6, 7]].mean(1))
    torch.testing.assert_close(parts(x, 4), x)


def test_kept_parts_are_means_of_what_is_kept() -> None:
    own = tiny.generator(5)
    keep_IN = torch.rand(3, 16, generator=own) < 0.4
    keep_IN[2] = torch.tensor([True] + [False] * 15)
    x_INC = torch.randn(3, 16, 3, generator=own)
    part_N = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3])
    found_ISC = kept_parts(x_INC[keep_IN], keep_IN, 2)
    for x_NC, keep_N, found_SC in zip(x_INC, keep_IN, found_ISC, strict=True):
        for part in range(4):
            own_NC = x_NC[keep_N & (part_N == part)]
            torch.testing.assert_close(found_SC[part], own_NC.mean(0) if len(own_NC) else torch.zeros(3))
    whole = kept_parts(x_INC.flatten(0, 1), torch.ones_like(keep_IN), 2)
    torch.testing.assert_close(whole, parts(x_INC, 2))


def test_short_names_are_filled_up_and_long_ones_cut() -> None:
    text = ByteTokenizer()
    words_QK = words_of_names(text, ["elk", "a sailing boat"], 5)
    assert words_QK.shape == (2, 5)
    assert words_QK[0].tolist() == text.encode(" elk.") and words_QK[1].tolist() == text.encode(" a sa")
    with pytest.raises(RebusError, match="must be one word, but '--' is 2"):
        words_of_names(text, NAMES, 3, filler="--")


@torch.no_grad()
def test_what_is_read_are_the_words_of_likely_names() -> None:
    readings, llm = random(SMALL, 6), language()
    x_ISC = torch.randn(7, 4, 6, generator=tiny.generator(1))
    with pytest.raises(RebusError, match="of no language model. Give the projector to an InterleavedLM"):
        readings.read(x_ISC)
    readings.look_up_in(llm)
    assert not any("words_of" in name or "base" in name for name in readings.state_dict())
    vectors_QKD = readings.vectors()
    assert torch.equal(vectors_QKD, llm.base.get_input_embeddings().weight[readings.words_QK[:4]])
    likely_IQ = readings.logits(x_ISC).softmax(-1)
    assert likely_IQ.shape == (7, 4)
    torch.testing.assert_close(readings.read(x_ISC), torch.einsum("iq,qkd->ikd", likely_IQ, vectors_QKD))
    readings.sharpness.fill_(9.0)  # a reading that is sure is a name's own words
    sure = readings.logits(x_ISC).softmax(-1).amax(-1) > 0.9999
    assert sure.any()
    torch.testing.assert_close(
        readings.read(x_ISC)[sure], vectors_QKD[readings.logits(x_ISC)[sure].argmax(-1)], atol=1e-3, rtol=1e-3
    )
    # only directions count: a picture that is as far from the middle again is called the same
    far = readings.centre_SC + 2 * (x_ISC - readings.centre_SC)
    torch.testing.assert_close(readings.logits(far), readings.logits(x_ISC), atol=1e-3, rtol=1e-4)


def test_layers_are_fitted_to_names_and_read_vectors_as_they_are() -> None:
    """What tells names apart is where a mark lies, of vectors that are far from the middle."""
    own, text, llm = tiny.generator(3), ByteTokenizer(), language()
    name_I = torch.arange(240) % 4
    x_ISC = 0.3 * torch.randn(240, 4, 6, generator=own)
    x_ISC[torch.arange(240), name_I] += 2.0
    x_ISC = x_ISC * 0.01 + 5
    config = WordReadingsConfig(grid=2, words=5, rank=8, names=6)
    readings, words_QK = WordReadings(config, 6), words_of_names(text, NAMES, 5)
    readings.fit(x_ISC, name_I, words_QK, fit=WordFit(steps=200, batch=64, lr=2e-2), generator=own)
    assert torch.equal(readings.words_QK[:4], words_QK) and (readings.words_QK[4:] == -1).all()
    assert readings.known_Q.tolist() == [True] * 4 + [False] * 2
    readings.look_up_in(llm)
    with torch.no_grad():
        assert (readings.logits(x_ISC).argmax(-1) == name_I).float().mean() > 0.95
        right_ID = llm.base.get_input_embeddings().weight[words_QK[name_I]]
        assert (readings.read(x_ISC) - right_ID).square().mean() < 0.05 * right_ID.var()
    few = WordReadings(WordReadingsConfig(grid=2, words=5, rank=8, names=3), 6)
    with pytest.raises(RebusError, match="The pictures have 4 names, .* at most 3"):
        few.fit(x_ISC, name_I, words_QK, generator=own)


@torch.no_grad()
def test_words_stand_in_the_place_of_a_views_last_slots() -> None:
    plain, worded = (SeedXInputProjector(TINY.projectors.into, tiny.generator(0), words=w) for w in (None, SMALL))
    worded.words = random(SMALL, 24)
    lm = InterleavedLM(language(), worded)
    x_VNC = torch.randn(3, 16, 24, generator=tiny.generator(2))
    where = torch.tensor([[0.2, 0.4]])
    seen = [Features(x_VNC[:1], "s", where), Features(x_VNC[1:], "s")]
    found, without = (of(seen).unflatten(0, (3, 4)) for of in (worded, plain))
    torch.testing.assert_close(found[:, :1], without[:, :1])
    torch.testing.assert_close(found[:, 1:], worded.words.read(parts(x_VNC, 2)))
    # a copy of the whole has its own language model's words
    other = copy.deepcopy(lm)
    other.llm.base.get_input_embeddings().weight.mul_(2)
    torch.testing.assert_close(other.input_projector.words.vectors(), 2 * worded.words.vectors())


@torch.no_grad()
def test_an_image_of_fewer_vectors_has_the_first_words() -> None:
    plain, worded = (
        LavitInputProjector(TINY_LAVIT.projector, 32, tiny.generator(0), running_mean=True, words=w)
        for w in (None, SMALL)
    )
    worded.words = random(SMALL, 32)
    InterleavedLM(language(), worded)
    keep_IN = torch.zeros(3, 16, dtype=torch.bool)
    keep_IN[0, 2:9] = keep_IN[1, 3:5] = keep_IN[2, 6:9] = True
    x_INC = torch.randn(3, 16, 32, generator=tiny.generator(4))
    found, without = (of.read(x_INC, keep_IN).split([7, 2, 3]) for of in (worded, plain))
    said_IKD = worded.words.read(kept_parts(worded.merger.kept(x_INC, keep_IN), keep_IN, 2))
    torch.testing.assert_close(found[0], torch.cat([without[0][:4], said_IKD[0]]))
    torch.testing.assert_close(found[1], said_IKD[1, :2])
    torch.testing.assert_close(found[2], said_IKD[2])
    dummy = worded(worded.dummy())
    assert dummy.shape == (1, 32) and dummy.isfinite().all()
