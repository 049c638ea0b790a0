"""Pictures that are drawn from the words that a language model says."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.mini.llm import read_base
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.nn.word_drawings import DrawingFit, WordDrawings, WordDrawingsConfig, words_of_wishes
from rebus.papers.seed_x.projectors import SeedXOutputProjector
from rebus.papers.seed_x.variants import TINY
from rebus.visual import Features

NAMES, STYLES = ["bear", "oak", "elk", "cow"], ["Noto", "Flat", "Noto", "Flat"]
SMALL = WordDrawingsConfig(words=3, rank=6, hidden=12, depth=1, choices=20)
SLOTS = ResamplerConfig(grid=2, width=24, heads=2, source_width=32)


def language() -> TextModel:
    """A language model of width 32 that reads bytes."""
    return read_base(TINY.language.base)[0]


def fitted(config: WordDrawingsConfig = SMALL) -> tuple[WordDrawings, torch.Tensor, torch.Tensor]:
    """What draws, fitted to a picture of four vectors for each name, the words of these and the pictures."""
    draws, own = WordDrawings(config, 32, 4, 24), tiny.generator(1)
    draws.look_up_in(language())
    words_IK = words_of_wishes(ByteTokenizer(), NAMES, STYLES, 3)
    x_ISC = torch.randn(4, 4, 24, generator=own) * 3 + 5
    draws.fit(words_IK, x_ISC, fit=DrawingFit(steps=300, batch=8, lr=1e-2, dropped=0.0), generator=own)
    return draws, words_IK, x_ISC


def said(draws: WordDrawings, words_IK: torch.Tensor, sure: float = 1e4) -> torch.Tensor:
    """States by which the language model's head says these words and nothing else."""
    head_VD = draws.llm.base.get_output_embeddings().weight.float()
    choices_WD = head_VD[draws.ids_W[draws.ids_W >= 0]]
    # the dual basis: the state that has a logit of `sure` with its own word and 0 with the others
    basis_WD = torch.linalg.pinv(choices_WD).T
    return basis_WD[draws.places(words_IK)].detach() * sure


def test_words_of_a_wish_are_those_of_the_name_and_one_of_the_style() -> None:
    text = ByteTokenizer()
    words = words_of_wishes(text, ["bear", "ox"], ["Noto", "Flat"], 5)
    assert [text.decode(row.tolist()) for row in words] == [" bea ", " ox. "]
    assert words[:, -1].tolist() == [text.encode(" Noto")[0], text.encode(" Flat")[0]]


def test_pictures_that_were_fitted_are_drawn_from_their_words() -> None:
    draws, words_IK, x_ISC = fitted()
    torch.testing.assert_close(draws(said(draws, words_IK)), x_ISC, atol=0.5, rtol=0.1)
    # in order of the words: another order is another picture
    other = draws(said(draws, words_IK.roll(1, 1)))
    assert (other - x_ISC).abs().mean() > 1
    # nothing draws before it is fitted
    fresh = WordDrawings(SMALL, 32, 4, 24)
    fresh.look_up_in(draws.llm)
    assert torch.equal(fresh(torch.randn(2, 3, 32)), torch.zeros(2, 4, 24))


def test_a_fit_is_the_same_again_and_leaves_the_random_stream_alone() -> None:
    draws, words_IK, x_ISC = fitted()
    begun, found = torch.random.get_rng_state(), []
    for _ in range(2):
        draws.fit(words_IK, x_ISC, fit=DrawingFit(steps=3, batch=2), generator=tiny.generator(2))
        found.append({name: x.clone() for name, x in draws.state_dict().items()})
    assert torch.equal(begun, torch.random.get_rng_state())
    for name, x in found[0].items():
        assert torch.equal(x, found[1][name]), name


def test_what_is_said_surely_costs_nothing_and_the_unsure_is_drawn_sharper() -> None:
    draws, words_IK, _ = fitted()
    places_IK = draws.places(words_IK)
    nats, right = draws.saying(said(draws, words_IK), places_IK)
    assert nats < 1e-3 and right == 1
    wrong, none = draws.saying(said(draws, words_IK), places_IK.roll(1, 0))
    assert wrong > 10 and none < 1
    unsure = said(draws, words_IK, sure=1.0)
    surely = draws(said(draws, words_IK))
    away = [(draws(unsure, sharper=s) - surely).abs().mean() for s in (1.0, 3.0, 30.0)]
    assert away[0] > away[1] > away[2]


def test_one_state_says_all_words_by_maps_of_its_own() -> None:
    draws, words_IK, _ = fitted(WordDrawingsConfig(words=3, rank=6, hidden=12, depth=1, choices=20, apart=2))
    hidden_ID = torch.randn(4, 32, generator=tiny.generator(3))
    logits_IKW = draws.logits(hidden_ID)
    assert logits_IKW.shape == (4, 3, int((draws.ids_W >= 0).sum()))
    torch.testing.assert_close(logits_IKW[:, 0], logits_IKW[:, 1])  # the maps begin as nothing
    with torch.no_grad():
        draws.up_KRD.normal_(generator=tiny.generator(4))
    assert (draws.logits(hidden_ID)[:, 0] - draws.logits(hidden_ID)[:, 1]).abs().max() > 1e-3


def test_words_that_were_not_fitted_are_refused() -> None:
    draws, words_IK, x_ISC = fitted()
    with pytest.raises(RebusError, match="not among those that pictures are drawn from"):
        draws.places(words_IK + 1)
    with pytest.raises(RebusError, match="of at most 2"):
        few = WordDrawings(WordDrawingsConfig(words=3, choices=2), 32, 4, 24)
        few.look_up_in(language())
        few.fit(words_IK, x_ISC, generator=tiny.generator(0))
    with pytest.raises(RebusError, match="of no language model"):
        WordDrawings(SMALL, 32, 4, 24)(torch.zeros(1, 3, 32))
    with pytest.raises(RebusError, match="4 slots say a word each, but 5 words"):
        SeedXOutputProjector(SLOTS, words=WordDrawingsConfig())
    with pytest.raises(RebusError, match="maps of rank 2"):
        SeedXOutputProjector(SLOTS, words=WordDrawingsConfig(words=3, apart=2))


def test_seed_x_adds_what_its_slots_regress_to_what_their_words_look_like() -> None:
    own = tiny.generator(5)
    projector = SeedXOutputProjector(SLOTS, words=SMALL, generator=own)
    lm = InterleavedLM(language(), output_projector=projector)
    assert projector.words is not None and projector.words.llm is lm.llm
    projector.words.fit(
        words_of_wishes(ByteTokenizer(), NAMES, STYLES, 3),
        torch.randn(4, 4, 24, generator=own),
        fit=DrawingFit(steps=20, batch=4),
        generator=own,
    )
    hidden_SD = torch.randn(4, 32, generator=own)
    drawn = projector(hidden_SD).x_WNC[0]
    plain = projector.resampler(hidden_SD[None])[0].detach()
    torch.testing.assert_close(drawn, plain + projector.words(hidden_SD[None, :3], sharper=3.0)[0].detach())
    # what is learned from is not sharpened
    target = Features(torch.zeros(1, 4, 24), "seed_x")
    loss = projector.loss(hidden_SD, [target])
    unsharp = plain + projector.words(hidden_SD[None, :3])[0].detach()
    torch.testing.assert_close(loss, unsharp.square().mean())
    loss.backward()
    assert projector.words.out.weight.grad is not None and lm.llm.base.get_output_embeddings().weight.grad is None


def test_where_data_says_what_is_drawn_the_words_are_learned_beside() -> None:
    own = tiny.generator(6)
    projector = SeedXOutputProjector(SLOTS, words=SMALL, saying_weight=0.5, generator=own)
    lm = InterleavedLM(language(), output_projector=projector)
    words_IK = words_of_wishes(ByteTokenizer(), NAMES, STYLES, 3)
    projector.words.fit(words_IK, torch.randn(4, 4, 24, generator=own), fit=DrawingFit(steps=5, batch=4), generator=own)
    hidden_TD, x_ISC = torch.randn(12, 32, generator=own), torch.randn(3, 4, 24, generator=own)
    # of the first they are known, of the second nobody says them, of the third they are no words that are drawn from
    says = [words_IK[1], None, words_IK[1] + 1]
    told = [Features(x_SC[None], "seed_x", says_K=ids) for x_SC, ids in zip(x_ISC, says, strict=True)]
    plain = [Features(x_SC[None], "seed_x") for x_SC in x_ISC]
    lm.train()
    nats, _ = projector.words.saying(hidden_TD[None, :3], projector.words.places(words_IK[1:2]))
    away = projector.loss(hidden_TD, plain)
    torch.testing.assert_close(projector.loss(hidden_TD, told), away + 0.5 * nats / 3)
    lm.eval()
    torch.testing.assert_close(projector.loss(hidden_TD, told), away)
