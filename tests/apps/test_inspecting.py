"""What the inspector says of tokens: counts, bits, changes and mixtures, and pictures with lines on them."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import pytest
import torch
from tests import tiny

from rebus.apps.inspecting import (
    blended,
    boxes_over,
    changed,
    codes_at,
    encoded,
    facts,
    likeness,
    redrawn,
    views_over,
)
from rebus.apps.patches import kept_over
from rebus.document import Box
from rebus.errors import RebusError
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.variants import TINY
from rebus.visual import Codes, Features, Patches

PICTURE = tiny.picture().pixels


@pytest.mark.parametrize("paper, kind", [("seed", Codes), ("lavit", Codes), ("seed_x", Features)])
def test_every_paper_is_counted_and_drawn(paper, kind):
    system = tiny.system(paper)
    tokens = encoded(system, PICTURE).generated
    assert isinstance(tokens, kind)
    found = facts(tokens, system)
    match tokens:
        case Codes():
            assert (found.count, found.bits) == (len(tokens.ids_N), 6 * len(tokens.ids_N))  # 64 codes to choose from
        case Features():
            assert (found.count, found.bits) == (4, 4 * 24 * 32)
    assert str(found.count) in found.says
    *progress, drawn = redrawn(system, [tokens])
    assert len(progress) == 2 and isinstance(drawn, PIL.Image.Image)
    *_, again = redrawn(system, [tokens])
    assert likeness(drawn, again) == math.inf


def test_bits_count_the_codes_of_a_place_only():
    system = tiny.fresh("seed")
    system.grammar = SeedGrammar(system.grammar.text, mini(262, 64, per_image=8, per_query=True), system.grammar.source)
    codes = Codes(torch.arange(8) * 8, system.grammar.source)
    assert [codes_at(system, place) for place in (0, 7)] == [range(0, 8), range(56, 64)]
    assert facts(codes, system).bits == 8 * 3


def test_patches_are_not_drawn_from():
    with pytest.raises(RebusError, match="not counted"):
        facts(Patches(torch.zeros(4, 2), torch.ones(4, dtype=torch.bool), "x"), tiny.system("lavit"))


def test_one_code_is_changed_and_nothing_else():
    system = tiny.system("seed")
    codes = encoded(system, PICTURE).generated
    other = (int(codes.ids_N[3]) + 1) % 64
    new = changed(codes, 3, other, system)
    assert (new.ids_N != codes.ids_N).nonzero().flatten().tolist() == [3] and int(new.ids_N[3]) == other
    assert changed(new, 3, int(codes.ids_N[3]), system).ids_N.tolist() == codes.ids_N.tolist()
    for place, code in ((-1, 0), (8, 0), (0, 64), (0, -1)):
        with pytest.raises(RebusError):
            changed(codes, place, code, system)


def test_a_mixture_goes_from_one_image_to_the_other():
    system = tiny.system("seed")
    one, other = (encoded(system, tiny.picture(colour).pixels).generated for colour in ((200, 30, 30), (0, 160, 0)))
    assert blended(one, other, 0, system).ids_N.tolist() == one.ids_N.tolist()
    assert blended(one, other, 1, system).ids_N.tolist() == other.ids_N.tolist()
    half = blended(one, other, 0.5, system)
    assert half.source == one.source and TINY.tokenizer.codebook_size > int(half.ids_N.max())
    with pytest.raises(RebusError, match="as many codes"):
        blended(one, Codes(torch.zeros(3, dtype=torch.long), one.source), 0.5, system)


def test_likeness_is_psnr_at_the_drawn_size():
    grey = PIL.Image.new("RGB", (40, 40), (100, 100, 100))
    assert likeness(grey, PIL.Image.new("RGB", (8, 8), (100, 100, 100))) == math.inf
    assert likeness(grey, PIL.Image.new("RGB", (8, 8), (151, 151, 151))) == pytest.approx(20 * math.log10(255 / 51))


def test_lines_stand_where_views_are_cut():
    white = PIL.Image.new("RGB", (90, 60), "white")
    marked = np.asarray(views_over(white, (3, 2)))
    red_hw = (marked == (255, 64, 64)).all(-1)
    assert red_hw[5].nonzero()[0].tolist() == [30, 60] and red_hw[:, 5].nonzero()[0].tolist() == [30]
    assert not (np.asarray(views_over(white, None)) != 255).any() and np.asarray(white).all()


def test_boxes_stand_where_they_say():
    white = PIL.Image.new("RGB", (401, 401), "white")
    red_hw = (np.asarray(boxes_over(white, [Box(0.5, 0.25, 0.5, 0.25)])) == (255, 64, 64)).all(-1)
    rows, columns = red_hw.nonzero()
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (100, 300, 50, 150)
    assert not red_hw[100, 200]
    assert boxes_over(PIL.Image.new("RGB", (64, 32)), [Box(1, 1, 1, 1)]).size == (384, 192)  # off the edge, enlarged


def test_a_budget_is_kept_and_the_tokenizer_left_as_it_was():
    pytest.importorskip("gradio", reason="the page's library is not installed")
    from rebus.apps.web.patches_panel import chosen

    system = tiny.fresh("lavit")
    before = (system.tokenizer.selection, system.tokenizer.budget)
    for budget in (2, 7):
        image = chosen(system, PICTURE, budget)
        assert int(image.understood.keep_N.sum()) == budget == len(image.generated.ids_N)
        assert kept_over(image, "lavit:tiny").size == PICTURE.size
    assert (system.tokenizer.selection, system.tokenizer.budget) == before
    with pytest.raises(RebusError):
        chosen(system, PICTURE, 99)
    assert (system.tokenizer.selection, system.tokenizer.budget) == before
