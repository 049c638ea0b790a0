"""Images that are read as the first words of what they show."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from rebus.errors import RebusError
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.nn.word_readings import WordFit, WordReadings, fit_words, words_of_names

NAMES = ["bear", "boat", "elk", "cow"]


def test_short_names_are_filled_up_and_long_ones_cut() -> None:
    text = ByteTokenizer()
    words_QK = words_of_names(text, ["elk", "a sailing boat"], 5)
    assert words_QK.shape == (2, 5)
    assert words_QK[0].tolist() == text.encode(" elk.") and words_QK[1].tolist() == text.encode(" a sa")
    with pytest.raises(RebusError, match="must be one word, but '--' is 2"):
        words_of_names(text, NAMES, 3, filler="--")


def test_what_is_read_lies_among_the_words() -> None:
    readings, own = WordReadings(4, 6, 8, words=3, rank=5), tiny.generator(0)
    table_VD = torch.randn(10, 8, generator=own)
    x_ISC = torch.randn(7, 4, 6, generator=own)
    with torch.no_grad():
        for parameter in (readings.down_SCR, readings.up_KRD, readings.bias_KD):
            parameter.normal_(generator=own)
        made_IKD = readings(x_ISC, table_VD, table_VD.mean(0))
        assert made_IKD.shape == (7, 3, 8)
        low, high = table_VD.min(0).values, table_VD.max(0).values
        assert ((made_IKD >= low - 1e-5) & (made_IKD <= high + 1e-5)).all()
        readings.sharpness.fill_(8.0)  # a reading that is sure is a word's own vector
        likely = readings.logits(x_ISC, table_VD, table_VD.mean(0)).softmax(-1)
        sure = likely.amax(-1) > 0.999
        assert sure.float().mean() > 0.5
        near = torch.cdist(readings(x_ISC, table_VD, table_VD.mean(0))[sure], table_VD).argmin(-1)
        assert torch.equal(near, likely[sure].argmax(-1))


def test_layers_are_fitted_to_the_words_of_names_and_read_vectors_as_they_are() -> None:
    """What tells names apart is where a mark lies, of vectors that are far from the middle and of different sizes."""
    own, text = tiny.generator(3), ByteTokenizer()
    name_I = torch.arange(240) % 4
    x_ISC = 0.3 * torch.randn(240, 4, 6, generator=own)
    x_ISC[torch.arange(240), name_I] += 2.0
    x_ISC = x_ISC * torch.tensor([0.01, 1, 10, 1, 1, 1]) + 5
    table_XD = torch.randn(262, 16, generator=own)
    readings = WordReadings(4, 6, 16, words=5, rank=8)
    words_QK = words_of_names(text, NAMES, 5)
    ids_V = fit_words(
        readings, x_ISC, name_I, words_QK, table_XD, fit=WordFit(steps=200, batch=64, lr=2e-2), generator=own
    )
    assert torch.equal(ids_V, words_QK.unique())
    with torch.no_grad():
        logits_IKV = readings.logits(x_ISC, table_XD[ids_V], table_XD.mean(0))
    said_IK = ids_V[logits_IKV.argmax(-1)]
    assert (said_IK == words_QK[name_I]).all(1).float().mean() > 0.95
