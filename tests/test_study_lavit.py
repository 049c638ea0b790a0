"""rebus study lavit-tokens: every arm learns what it should from the same features, and what the figures say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lavit_mini import RECONSTRUCTION, write_work
from rebus.apps import studies as app
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.studies import lavit_tokens as s
from rebus.train.optimiser import select

LOSS = replace(RECONSTRUCTION, draft=None, draft_weight=0.0)
TINY = s.Config(loss=LOSS, rows=2, columns=3, steps=2, batch=4, n=6)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return write_work(tmp_path_factory.mktemp("study"))


def features(work):
    return Frozen(work).rows("train", np.arange(4), "tokens")[0][:, 1:]


def test_the_study_is_known():
    assert "lavit-tokens" in app.studies()
    assert s.Config().budget == 20 and s.Config().loss.share_of == "batch"


@pytest.mark.parametrize("kind", s.KINDS)
def test_an_arm_has_its_tokens_and_learns_its_own_parts(work, kind):
    arm, x_INC = s.TokensArm(kind, TINY, seed=0), features(work)
    generator = torch.Generator().manual_seed(0)
    keep_IN = arm.choice(x_INC, generator, 1.0)
    if kind in ("random", "grid", "norm"):
        assert (keep_IN.sum(1) == 6).all()
    learning = select(arm, arm.learned())
    arm.losses(x_INC, generator).total.backward()
    moved = {name for name, p in learning.items() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("detokenizer.decoder.") for name in moved)
    assert any(name.startswith("tokenizer.selector.") for name in moved) == (kind in s.LEARNED)
    assert any(name.startswith("tokenizer.merger.blocks.") for name in moved) == (
        kind not in ("no_merger", "pooled", "queries")
    )
    assert any(".cross." in name and "merger" in name for name in moved) == (
        kind not in ("no_merger", "no_cross", "pooled", "queries")
    )
    assert any(name.startswith("encoder.") for name in moved) == (kind in ("pooled", "queries"))
    lengths = [len(rows) for rows in (arm.tokens(x_INC, keep_IN > 0))]
    assert lengths == [4, 4]


def test_encoders_are_as_large_as_the_merger():
    def size(module):
        return sum(p.numel() for p in module.parameters())

    config = replace(s.Config().loss.tokenizer.merger)
    merger = size(s.Merger(config))
    generator = torch.Generator()
    assert size(s.PooledEncoder(config, 8, (4, 5), generator)) == pytest.approx(merger, rel=0.02)
    assert size(s.QueryEncoder(config, 20, generator)) == pytest.approx(merger, rel=0.02)


def test_a_merger_without_sight_of_the_dropped_is_blind_to_them(work):
    arm, x_INC = s.TokensArm("no_cross", TINY, seed=0).eval(), features(work)
    keep_IN = s.on_grid(8, 2, 3).expand(4, -1) > 0
    other_INC = torch.where(keep_IN[..., None], x_INC, x_INC.flip(0))
    for x, y in zip(arm.tokens(x_INC, keep_IN), arm.tokens(other_INC, keep_IN), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_patches_on_a_grid_are_spread_evenly():
    keep_hw = s.on_grid(8, 4, 5).view(8, 8)
    assert keep_hw.sum() == 20 and (keep_hw.sum(1) > 0).sum() == 4 and (keep_hw.sum(0) > 0).sum() == 5
    assert s.on_grid(8, 8, 8).all()
    with pytest.raises(RebusError, match="9 x 2 patches do not fit on 8 x 8"):
        s.on_grid(8, 9, 2)
    with pytest.raises(RebusError, match="0 x 5 tokens were asked for"):
        s.TokensArm("grid", replace(TINY, rows=0, columns=5), seed=0)


def test_names_are_read_from_captions():
    for caption, name in {
        "a straight ruler": "a straight ruler",
        "a bomb, flat Fluent style": "a bomb",
        "a shamrock, drawn in Noto style, on a chequered purple and black background": "a shamrock",
        "a victory hand in Twemoji style": "a victory hand",
        "an umbrella on ground, on a pink background": "an umbrella on ground",
        "a tram car in EmojiOne style, on an orange background": "a tram car",
    }.items():
        assert s.name_of(caption) == name


def test_the_name_probe_and_the_correlation():
    x_IC = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [-1.0, -1]])
    assert s.named_alike(x_IC, ["a", "a", "b", "c"]) == 1.0
    assert s.named_alike(x_IC, ["a", "b", "a", "c"]) == 0.0
    a_I = torch.tensor([1.0, 2, 3])
    assert s.correlation(a_I, 2 * a_I + 1) == pytest.approx(1)
    assert s.correlation(a_I, torch.ones(3)) == 0


def test_all_arms_are_measured_and_kept(work, tmp_path):
    whole = s.Study(TINY, work, tmp_path, lambda line: None)
    for kind in ("learned", "codes", "queries"):
        arm = whole.trained(kind, 0, tmp_path / kind)
        assert int(arm.done) == 2
        figures = s.measured(arm, whole.data, TINY.n)
        assert figures.keys() == {measure.name for measure in s.MEASURES}
        assert -1 <= figures["cosine"] <= 1 and 1 <= figures["tokens"] <= 64
        assert 0 <= figures["named"] <= 1
    assert figures["tokens"] == 6 and figures["deviation"] == 0 and figures["cosine"] == figures["at_budget"]
