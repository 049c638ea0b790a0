"""A budget of tokens on the command line, the picture of what is kept, and the numbers that cannot be."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from tests import tiny

from rebus.apps.patches import give_tokens, kept_over
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.sampling import Sampling
from rebus.visual import Codes, Patches


@pytest.fixture
def lavit(monkeypatch):
    """`rebus.system.load` gives lavit:tiny, which really chooses."""
    import rebus.system
    from rebus.apps import loading

    system = tiny.fresh("lavit")
    monkeypatch.setattr(rebus.system, "load", lambda name, **options: system)
    monkeypatch.setattr(loading, "fetch_base", lambda config, console: None)
    return system


@pytest.fixture
def ramp(tmp_path):
    PIL.Image.linear_gradient("L").convert("RGB").resize((80, 40)).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


def test_a_picture_has_as_many_tokens_as_it_is_given(run, lavit, ramp, tmp_path):
    for tokens in (1, 5, 16):
        ran = run("tokenize", "lavit:tiny", ramp, "--tokens", tokens, "--show-mask", tmp_path / "mask.png")
        assert ran.code == 0, ran.err
        assert len(ran.out.splitlines()[-1].split()) == tokens
        mask = np.asarray(PIL.Image.open(tmp_path / "mask.png").convert("RGB")).astype(int)
        assert mask.shape == (40, 80, 3)
        same = (mask == np.asarray(PIL.Image.open(ramp))).all(-1)
        assert same.mean() == pytest.approx(
            tokens / 16, abs=0.05
        )  # what is kept is as it was; a faded grey may be so too


def test_masks_of_several_pictures_are_numbered(run, lavit, ramp, tmp_path):
    assert run("tokenize", "lavit:tiny", ramp, ramp, "--show-mask", tmp_path / "m.png").code == 0
    assert (tmp_path / "m-1.png").exists() and (tmp_path / "m-2.png").exists()


@pytest.mark.parametrize("tokens", [0, -3, 17, 10_000])
@pytest.mark.parametrize("verb", ["tokenize", "see"])
def test_a_budget_that_cannot_be_ends_in_one_line(run, lavit, ramp, verb, tokens):
    words = ("tokenize", "lavit:tiny", ramp) if verb == "tokenize" else ("see", ramp, "--system", "lavit:tiny")
    ran = run(*words, "--tokens", tokens)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert f"1 to 16 can be kept, but the budget is {tokens}" in ran.err


def test_a_system_that_does_not_choose_says_so(run, ramp):
    ran = run("tokenize", "seed:mini", ramp, "--tokens", 4)
    assert ran.code == 2 and "seed:mini gives every picture the same number of tokens" in ran.err
    ran = run("tokenize", "seed:mini", ramp, "--show-mask", "mask.png")
    assert ran.code == 2 and "seed:mini chooses no patches" in ran.err


def test_what_is_dropped_is_faded_in_the_pictures_own_shape():
    keep_N = torch.tensor([True, False, False, True])
    image = Image(PIL.Image.new("RGB", (6, 4), (10, 200, 30))).with_tokens(
        understood=Patches(torch.zeros(4, 2), keep_N, "x"), generated=Codes(torch.tensor([1, 2]), "x")
    )
    shown = np.asarray(kept_over(image, "x"))
    assert (shown[:2, :3] == [10, 200, 30]).all() and (shown[2:, 3:] == [10, 200, 30]).all()
    assert (shown[:2, 3:] == 136).all() and (shown[2:, :3] == 136).all()


def test_no_budget_changes_nothing(lavit):
    give_tokens(lavit, "lavit:tiny", None)
    assert lavit.tokenizer.selection == "sample" and lavit.tokenizer.budget is None


# ------------------------------------------------------------------------------------------------ images that do not end


def test_an_image_that_reaches_the_length_limit_is_closed(lavit):
    for most in (4, 5, 9, 30):
        (said,) = lavit.generate(
            [Document((user("a cat"),))], modality="image", sampling=Sampling(max_new_tokens=most, temperature=1.0)
        )
        (image,) = said.images
        assert 2 <= len(image.generated.ids_N) <= min(most - 2, 12) and image.pixels is not None


def test_a_reply_without_room_for_an_image_is_refused_before_it_begins(lavit):
    with pytest.raises(RebusError, match="at least 4 words, but only 3 are left"):
        lavit.generate([Document((user("a cat"),))], modality="image", sampling=Sampling(max_new_tokens=3))
    (said,) = lavit.generate([Document((user("a cat"),))], modality="any", sampling=Sampling(max_new_tokens=3))
    assert not said.images  # none is begun that could not be finished


def test_words_of_an_image_that_was_cut_off_are_refused(lavit):
    special, first = lavit.grammar.special, lavit.grammar.config.first_code
    for words in ([special.begin_image, first, first + 1], [special.begin_image, special.end_image]):
        with pytest.raises(RebusError, match="codes between two marks"):
            lavit.grammar.read(words)


def test_codes_that_cannot_be_drawn_end_in_one_line(run, lavit, tmp_path):
    for codes, said in (("64", "from 64 to 64"), (" ".join(["1"] * 17), "image 1 has 17")):
        ran = run("detokenize", "lavit:tiny", codes, "-o", tmp_path / "x.png")
        assert ran.code == 2 and "1 to 16 codes of 0 to 63" in ran.err and said in ran.err
        assert not (tmp_path / "x.png").exists()
