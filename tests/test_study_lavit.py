"""rebus study lavit-tokens: every arm learns what it should from the same features, and what the figures say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from lavit_mini import RECONSTRUCTION, SYSTEM, write_work
from rebus.apps import studies as app
from rebus.errors import RebusError
from rebus.evals.complexity import correlation, gradient_energy, png_bytes
from rebus.mini.frozen import Frozen
from rebus.studies import lavit_arms as s
from rebus.studies import lavit_language, lavit_verdict, limit
from rebus.studies.arms import Record
from rebus.studies.lavit_figures import MEASURES, name_of, named_alike
from rebus.studies.lavit_tokens import Study, study
from rebus.studies.verdict import against
from rebus.train.optimiser import select

TINY_BASE = SYSTEM.language.base
LOSS = replace(RECONSTRUCTION, draft=None, draft_weight=0.0)
TINY = s.Config(
    loss=LOSS,
    rows=2,
    columns=3,
    steps=2,
    batch=4,
    n=6,
    base=TINY_BASE,
    language_steps=2,
    language_batch=4,
    language_n=6,
)


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
        assert name_of(caption) == name


def test_the_name_probe_and_the_correlation():
    x_IC = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [-1.0, -1]])
    assert named_alike(x_IC, ["a", "a", "b", "c"]) == 1.0
    assert named_alike(x_IC, ["a", "b", "a", "c"]) == 0.0
    a_I = torch.tensor([1.0, 2, 3])
    assert correlation(a_I, 2 * a_I + 1) == pytest.approx(1)
    assert correlation(a_I, torch.ones(3)) == 0


def test_a_flat_picture_is_simple_and_noise_is_not():
    flat = PIL.Image.new("RGB", (64, 64), (200, 10, 10))
    half = flat.copy()
    half.paste((255, 255, 255), (0, 0, 32, 64))
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for measure in (png_bytes, gradient_energy):
        assert (measure([flat, half, noise]).diff() > 0).all()
    step = (0.299 * 200 + 0.587 * 10 + 0.114 * 10 - 255) / 255  # one edge of 63 places in each row
    assert gradient_energy([flat, half])[1].item() == pytest.approx(step**2 / 63, rel=0.02)
    assert png_bytes([half])[0] == png_bytes([half.resize((128, 128), PIL.Image.Resampling.NEAREST)])[0]


# ------------------------------------------------------------------------------------------------ the limit of time


def test_steps_are_what_the_minutes_allow_and_stay_so(tmp_path):
    calls = []

    def step():
        calls.append(0)
        return 0.5

    assert limit.affordable(tmp_path, "arms", 500, 1.0, step) == 96  # 80 % of 60 s at half a second each
    assert limit.affordable(tmp_path, "arms", 500, 1.0, step) == 96 and len(calls) == 4
    assert limit.affordable(tmp_path, "arms", 50, 1.0, step) == 50
    assert limit.affordable(tmp_path, "arms", 500, 1e-9, step) == 1


def test_an_arm_stops_when_its_time_is_over_and_keeps_its_weights(work, tmp_path, monkeypatch):
    whole = Study(replace(TINY, steps=50), work, tmp_path, print)
    whole.steps = 50
    clock = iter(range(1000))
    # a clock of its own: others ask the time as well
    monkeypatch.setattr(limit, "time", SimpleNamespace(monotonic=lambda: 15.0 * next(clock)))
    whole.config = replace(whole.config, minutes=1.0)
    arm, taken = whole.trained("grid", 0, tmp_path / "grid-0")
    assert taken == int(arm.done) == 4
    found = load_file(tmp_path / "grid-0" / "weights.safetensors")
    assert torch.equal(found["tokenizer.to_code.0.weight"], arm.tokenizer.to_code[0].weight)


# ------------------------------------------------------------------------------------------------ the verdict


def made(**means: dict[str, tuple[float, ...]]) -> list[Record]:
    """Records of all arms: given figures by seed, for the rest 0.5."""
    figures = [measure.name for measure in MEASURES]
    records = []
    for arm in s.KINDS:
        given = means.get(arm, {})
        for seed in range(3):
            held = {name: given.get(name, (0.5,) * 3)[seed] for name in figures}
            records.append(Record(arm, seed, held, 1.0))
    return records


def test_better_is_what_exceeds_the_spread_of_the_seeds():
    records = made(learned={"at_budget": (0.80, 0.81, 0.82)}, grid={"at_budget": (0.78, 0.79, 0.80)})
    compared = against(records, "learned", "grid", "at_budget")
    assert compared.says == "no different" and compared.spread == pytest.approx(0.02)
    records = made(learned={"at_budget": (0.80, 0.81, 0.82)}, grid={"at_budget": (0.77, 0.78, 0.79)})
    assert against(records, "learned", "grid", "at_budget").says == "better"
    assert against(records, "grid", "learned", "at_budget").says == "worse"
    assert against(records, "grid", "learned", "at_budget", higher=False).says == "better"
    one = [record for record in records if record.seed == 0]
    assert against(one, "learned", "grid", "at_budget").says == "unknown"


def test_the_verdict_follows_the_records():
    def said(**means):
        found = lavit_verdict.findings(made(**means))
        return [finding.yes for finding in found], lavit_verdict.conclusion(found)

    good = {"at_budget": (0.9, 0.9, 0.9), "cosine": (0.9,) * 3, "decided": (0.9,) * 3, "complexity": (0.5,) * 3}
    yes, text = said(learned=good)
    assert yes == [True, True, True, True, True]
    assert "choice helps, the merger helps, and lengths are dynamic" in text and "worth its parameters" in text
    yes, text = said(learned=good, pooled={"at_budget": (0.95, 0.95, 0.95)})
    assert yes[3] is False and "drop the selector" in text
    yes, _ = said(learned=good, grid={"at_budget": (0.9, 0.9, 0.9)})
    assert yes[0] is False
    yes, _ = said(learned=good | {"decided": (0.7,) * 3})  # 2.3 times as much between pictures as between draws
    assert yes[1] is False
    one = [record for record in made(learned=good) if record.seed == 0]
    assert "One seed is no evidence" in lavit_verdict.conclusion(lavit_verdict.findings(one))


def test_the_whole_study_writes_its_document(work, tmp_path):
    config = replace(TINY, language=True)
    out, docs = tmp_path / "out", tmp_path / "docs"
    text = study(config, work, out, seeds=(0, 1), docs=docs)
    assert (docs / "lavit_tokens.md").read_text() == (out / "lavit_tokens.md").read_text() == text
    for name in ("lavit_tokens.png", "lavit_tokens_language.png"):
        assert (docs / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in text
    assert "2 seeds" in text and "steps 2" in text and "**Verdict.**" in text
    for title in (*s.KINDS.values(), "A language model that reads the tokens"):
        assert title in text
    records = sorted(path.name for path in out.glob("*-0.json"))
    assert len(records) == len(s.KINDS) + 3 and sum(name.startswith("language-") for name in records) == 3
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert study(config, work, out, seeds=(0, 1), docs=docs) == text  # nothing is run again
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == before


def test_tokens_of_an_arm_are_read_and_captions_are_told_apart(work):
    data = Frozen(work)
    arm = s.TokensArm("grid", TINY, 0)
    shown = lavit_language.seen(arm, data, "val", np.arange(6))
    assert [len(tokens) for tokens in shown.tokens] == [6] * 6 and shown.names[0] == "a thing 0"
    reader = lavit_language.Reader(TINY, 192, 0)
    laid = lavit_language.lay(reader.text, shown.tokens[0], "a thing 0")
    assert laid.input_spans == [(0, 6)] and sum(laid.target) == len(laid) - 6
    found = lavit_language.asked(reader, shown)
    assert found["nats"] > 0 and 0 <= found["chosen"] <= 1
    others = lavit_language._others(["a", "b", "a", "c"])
    assert others == [[1, 3], [2, 3, 0], [3, 1], [0, 1, 2]]
