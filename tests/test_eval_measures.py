"""The arithmetic of the figures against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import pytest
import torch

from rebus.evals.cider import Cider
from rebus.evals.codebook import codebook_figures, own_codes
from rebus.evals.figures import Figure, compare, wrong_targets
from rebus.evals.likeness import MOST_DB, psnr, ssim
from rebus.evals.nearest import Gallery
from rebus.evals.retrieval import retrieval_figures
from rebus.evals.vqa import Question, is_right, short
from rebus.evals.wordmatch import first_of, holds, holds_any, says_yes, words

# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("answer", "name", "expected"),
    [
        ("This is a red apple.", "red apple", True),
        ("It shows two red apples!", "red apple", True),
        ("A RED apple", "Red Apple", True),
        ("The apple is red.", "red apple", False),
        ("a pineapple", "apple", False),
        ("a category", "cat", False),
        ("three boxes", "box", True),
        ("the flag of Côte d’Ivoire", "flag of Côte d'Ivoire", False),
        ("", "cat", False),
        ("cat", "", False),
        ("It is grey.", "gray", True),
        ("3 cats", "three", True),
    ],
)
def test_holds_whole_words(answer, name, expected):
    assert holds(answer, name) is expected


def test_words_and_first_words():
    assert words("Don't, O'clock -- 3 grey_dogs") == ["don't", "o'clock", "three", "gray", "dogs"]
    assert holds_any("a dog", ["cat", "dog"]) and not holds_any("a dog", [])
    assert says_yes("Well, yes, no") is True and says_yes("No.") is False and says_yes("Perhaps") is None
    assert first_of("a grey or red thing", ["red", "gray"]) == "gray" and first_of("none", ["red"]) is None


def test_answers_are_right():
    def asked(answer, choices=()):
        return Question("kind", PIL.Image.new("RGB", (2, 2)), "?", answer, choices)

    assert is_right("Yes, it is a cat.", asked("yes")) == 1 and is_right("No.", asked("yes")) == 0
    assert is_right("Hm.", asked("no")) == 0
    assert is_right("It is Noto style.", asked("Noto")) == 1
    assert is_right("red and blue", asked("blue", ("red", "blue"))) == 0
    assert [short(t) for t in ("Yes.", "A red apple.", "An owl.", "Three.", "Tokyo Tower.")] == [
        "yes",
        "red apple",
        "owl",
        "three",
        "tokyo tower",
    ]


# ------------------------------------------------------------------------------------------------ CIDEr


def test_cider_against_hand_computed_values():
    references = [["a red apple on grass"], ["two dogs run fast home"]]
    cider = Cider(references)
    assert cider.score("a red apple on grass", references[0]) == pytest.approx(10)
    assert cider.score("two dogs run fast home", references[0]) == 0
    # one word shared of two and of three, one pair of one and of two: (2/√6 + 1/√2) / 4, one word shorter
    cider = Cider([["red apple tree"], ["blue car"]])
    expected = 10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider.score("red apple", ["red apple tree"]) == pytest.approx(expected)
    # repeating a word does not pay: counts are clipped to the reference's
    assert cider.score("red red red", ["red apple tree"]) == pytest.approx(10 * (3 / (3 * math.sqrt(3)) / 3) / 4)


def test_cider_gives_nothing_for_words_that_every_image_has():
    cider = Cider([["this is a cat"], ["this is a dog"]])
    assert cider.score("this is a", ["this is a cat"]) == 0
    assert cider.score("this is a cat", ["this is a cat", "this is a dog"]) == pytest.approx(5, abs=0.01)


# ------------------------------------------------------------------------------------------------ pixels


def grey(value):
    return PIL.Image.new("RGB", (16, 16), (value,) * 3)


def test_psnr():
    assert psnr(grey(100), grey(151)) == pytest.approx(-10 * math.log10(0.2**2))
    assert psnr(grey(7), grey(7)) == MOST_DB
    assert psnr(grey(7).resize((32, 32)), grey(7)) == MOST_DB


def test_ssim():
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    assert ssim(noise, noise) == pytest.approx(1)
    a, b = 100 / 255, 150 / 255
    assert ssim(grey(100), grey(150)) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))
    inverse = PIL.Image.fromarray(255 - np.asarray(noise))
    assert ssim(noise, inverse) < -0.5
    assert ssim(noise, inverse) == pytest.approx(ssim(inverse, noise))


# ------------------------------------------------------------------------------------------------ codes


def test_codebook_figures():
    found = dict(codebook_figures([[0, 1], [1, 0], [0, 1]], 4))
    even = 4 * (1 - 0.75**6)
    assert found == pytest.approx(
        {
            "codebook/used": 2,
            "codebook/used_share": 0.5,
            "codebook/dead": 2,
            "codebook/perplexity": 2,
            "codebook/codes_per_image": 2,
            "codebook/bits_per_image": 2,
            "codebook/not_unique": 2 / 3,
        }
    )
    ceilings = {f.name: f.ceiling for f in codebook_figures([[0, 1], [1, 0], [0, 1]], 4)}
    assert ceilings["codebook/used"] == pytest.approx(even) and ceilings["codebook/bits_per_image"] == 4
    assert "codebook/dead" not in dict(codebook_figures([[0]], None))


def test_a_place_with_codes_of_its_own_is_not_counted_as_bits():
    figures = {f.name: f for f in codebook_figures([[0, 2], [1, 3], [0, 3], [1, 2]], 4)}
    bits = figures["codebook/bits_per_image"]
    assert bits.value == pytest.approx(2) and bits.ceiling == pytest.approx(2)  # four images, two bits
    assert figures["codebook/perplexity"].value == pytest.approx(4)
    assert not own_codes([[0, 1], [1, 0]]) and not own_codes([[0, 1], [0]]) and own_codes([[0, 1], [0, 2]])


# ------------------------------------------------------------------------------------------------ comparisons


def test_wrong_targets_are_others_and_each_is_used_once():
    for count in (2, 3, 9, 30):
        pairings = wrong_targets(count)
        assert 1 <= len(pairings) <= 8
        for pairing in pairings:
            assert sorted(pairing) == list(range(count)) and all(i != other for i, other in enumerate(pairing))
    assert wrong_targets(1) == [] and wrong_targets(0) == []


def test_wrong_targets_stay_in_their_group():
    groups = [0, 1, 0, 1, 1, 2]
    for pairing in wrong_targets(6, groups):
        assert [groups[other] for other in pairing] == groups
        assert pairing[5] == 5  # alone in its group


def test_compare():
    figure = compare(
        "task/what",
        lambda output, target: float(output == target),
        [[1, 2, 3], [1, 2, 0]],
        [1, 2, 3],
        chance=[0, 0, 3],
        ceiling=1.0,
    )
    assert figure.runs == pytest.approx((1, 2 / 3)) and figure.value == pytest.approx(5 / 6)
    assert (figure.low, figure.high, figure.n) == (pytest.approx(2 / 3), 1, 3)
    assert figure.chance == pytest.approx(1 / 3) and figure.ceiling == 1 and figure.shuffled == 0
    assert tuple(figure) == ("task/what", figure.value)


def test_a_constant_answer_gets_what_shuffling_gives():
    targets = ["yes", "no"] * 10
    figure = compare("x", lambda o, t: float(o == t), [["yes"] * 20], targets, chance=["yes"] * 20)
    assert figure.value == figure.chance == 0.5
    assert figure.shuffled == pytest.approx(0.5)


def test_a_figure_of_one_item_has_no_shuffled_value():
    figure = compare("x", lambda o, t: 1.0, [["a"]], ["a"])
    assert figure.shuffled is None and isinstance(figure, Figure)


# ------------------------------------------------------------------------------------------------ vectors


def test_gallery_names_by_the_nearest_and_leaves_out():
    x_GC = torch.eye(4)
    gallery = Gallery([10, 11, 12, 13], ["a", "a", "b", "c"], x_GC)
    assert gallery.names == 3
    assert gallery.nearest(x_GC) == [10, 11, 12, 13]
    query = torch.tensor([[0.9, 0.4, 0.1, 0.0]])
    assert gallery.nearest(query) == [10]
    assert gallery.nearest(query, without=[10]) == [11]
    assert gallery.nearest(query, without=[99]) == [10]
    assert gallery.ranks(query) == [{"a": 1, "b": 2, "c": 3}]


def test_retrieval_of_perfect_and_of_worthless_embeddings():
    x_IC = torch.eye(20)
    perfect = {f.name: f for f in retrieval_figures(x_IC, x_IC)}
    assert all(f.value == 1 and f.ceiling == 1 for f in perfect.values())
    assert perfect["retrieval/text_r_at_1"].chance == pytest.approx(0.05)
    assert perfect["retrieval/text_r_at_1"].shuffled == 0
    same = {f.name: f.value for f in retrieval_figures(torch.ones(20, 4) / 2, torch.ones(20, 4) / 2)}
    assert same["retrieval/text_r_at_1"] == pytest.approx(0.05) and same["retrieval/image_r_at_5"] == pytest.approx(
        0.25
    )
