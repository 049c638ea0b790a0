"""From scores to words, and from words to text: the arithmetic of sampling, and stop strings."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.toy import GRAMMAR, LM, decode, prompt, scores

from rebus.errors import RebusError
from rebus.narrate import Finished, Narrator
from rebus.sampling import Sampling, decide, pick, restrict

# ------------------------------------------------------------------------------------------------ choosing a word


def test_greedy_is_the_likeliest_allowed_word():
    reply, _ = decode(modality="text")
    ids = prompt().ids
    for word in reply.ids:
        allowed = GRAMMAR.letters
        expected = allowed[int(scores(LM, ids)[-1][allowed].argmax())]
        assert word == expected
        ids = [*ids, word]


def test_score_is_the_log_probability_of_what_was_chosen():
    for seed in range(3):
        reply, _ = decode(modality="text", temperature=1.0, seed=seed)
        ids = prompt().ids + reply.ids
        given = scores(LM, ids)[len(prompt()) - 1 : -1]
        expected = sum(float(given[i, word]) for i, word in enumerate(reply.ids))
        assert reply.score == pytest.approx(expected, abs=1e-3)


def test_temperature_top_k_and_top_p():
    scores_V = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0]).log()

    def drawn(**settings):
        some = tiny.generator(0)
        settings = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | settings
        return [pick(scores_V, generator=some, **settings) for _ in range(2000)]

    share = torch.bincount(torch.tensor(drawn()), minlength=5) / 2000
    torch.testing.assert_close(share, scores_V.exp(), atol=0.04, rtol=0)
    hot = torch.bincount(torch.tensor(drawn(temperature=2.0)), minlength=5) / 2000
    torch.testing.assert_close(hot, (scores_V / 2).softmax(-1), atol=0.04, rtol=0)
    assert set(drawn(top_k=2)) == {0, 1} and set(drawn(top_k=99)) == {0, 1, 2, 3}
    assert set(drawn(top_p=0.5)) == {0} and set(drawn(top_p=0.51)) == {0, 1} and set(drawn(top_p=1e-9)) == {0}
    assert set(drawn(top_p=5e-324)) == {0}  # which is nothing in float32
    assert pick(scores_V, 0.0, None, 1.0, None) == 0
    with pytest.raises(RebusError, match="no generator was given"):
        pick(scores_V, 1.0, None, 1.0, None)


def test_repetition_penalty_and_minimum():
    scores_V = torch.tensor([-1.0, -1.2, -9.0])
    allowed = torch.tensor([True, True, False])
    assert restrict(scores_V, allowed, [0], 2.0).tolist() == [-2.0, pytest.approx(-1.2), float("-inf")]
    plain, _ = decode(modality="text", max_new_tokens=12)
    varied, _ = decode(modality="text", max_new_tokens=12, repetition_penalty=50.0)
    assert len(set(varied.ids)) >= len(set(plain.ids))
    for seed in range(4):
        reply, events = decode(modality="text", min_new_tokens=9, temperature=2.0, seed=seed)
        assert len(reply.ids) > 9 and GRAMMAR.special.eos not in reply.ids[:9]
        assert isinstance(events[-1], Finished)
    endings = [decode(modality="text", temperature=2.0, seed=seed)[1][-1].reason for seed in range(8)]
    assert {"end"} <= set(endings) <= {"end", "length"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_p": 0.0}, "top_p cannot be 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens cannot be 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens cannot be 9"),
        ({"stop": ("",)}, "stop cannot be"),
        ({"beams": 2, "temperature": 1.0}, "does not sample, but beams is 2"),
        ({"best_of": 2}, "they are all the same"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(RebusError, match=words):
        Sampling(**settings)


def test_settings_inside_images_may_differ():
    sampling = Sampling(temperature=0.5, top_k=7, image_temperature=1.0, image_top_p=0.9)
    assert sampling.within(image=False) == (0.5, 7, 1.0) and sampling.within(image=True) == (1.0, 7, 0.9)


# ------------------------------------------------------------------------------------------------ text as it comes


def test_stop_strings_are_never_said():
    for stop, text, expected in [
        (("\n",), "yes\nno", ["yes"]),
        (("END", "ENDING"), "an ENDING", ["an "]),
        (("aab",), "aaaab!", ["aa"]),
        (("zz",), "az", ["az"]),
        (("日本",), "x日本", ["x"]),
    ]:
        narrator = Narrator(GRAMMAR, stop)
        said = [piece for word in text.encode() for piece in narrator.push(word)] + narrator.flush()
        assert "".join(said) == "".join(expected) and all(said)
        assert narrator.stopped == (text != "az")
        assert narrator.stopped is False or narrator.push(65) == []


def test_a_stop_string_ends_the_reply():
    whole, _ = decode(modality="text", temperature=1.0, min_new_tokens=15)
    text = GRAMMAR.text.decode(whole.ids)
    reply, events = decode(modality="text", temperature=1.0, min_new_tokens=15, stop=(text[5:7],))
    assert "".join(events[:-1]) == text[: text.index(text[5:7])]
    assert events[-1] == Finished("stop") and len(reply.ids) < len(whole.ids)


def test_the_end_of_an_image_comes_as_often_as_the_model_says_whatever_the_temperature():
    scores_V = torch.tensor([0.2] + [0.8 / 400] * 400).log()
    for temperature in (0.3, 1.0):
        dice = tiny.generator(0)
        comes = [decide(scores_V, 0, 1.0, temperature, dice)[0] for _ in range(4000)]
        assert sum(comes) / 4000 == pytest.approx(0.2, abs=0.02)
    tempered = (scores_V / 0.3).softmax(-1)[0]
    assert tempered > 0.99  # what it would be as one word among the others
    still, greedy = 1.0, []
    for _ in range(4):
        comes, still = decide(scores_V, 0, still, 0.0, None)
        greedy.append(comes)
    assert greedy == [False, False, False, True] and still == pytest.approx(0.8**4)  # 0.8³ is still above one half
