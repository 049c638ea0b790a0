"""Studies compare like with like, keep what they measured, and say what they found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rebus.apps import studies as app
from rebus.errors import RebusError
from rebus.mini.bank import Bank
from rebus.mini.frozen import Frozen
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.variants import PLAIN_TOKENIZER
from rebus.studies import arms as a
from rebus.studies import causal, causal_verdict
from rebus.studies import writer as writer_of


def _arms(calls, values):
    def run(name):
        def once(seed, folder):
            calls.append((name, seed))
            return {"x": values[name] + seed}

        return once

    return [a.Arm(name, f"the arm {name}", run(name)) for name in values]


def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    calls = []
    arms = _arms(calls, {"one": 1.0, "two": 5.0})
    a.run_arms(arms, (0,), tmp_path, recipe={"steps": 3})
    records = a.run_arms(arms, (0, 1, 2), tmp_path, recipe={"steps": 3})
    assert calls == [("one", 0), ("two", 0), ("one", 1), ("two", 1), ("one", 2), ("two", 2)]
    assert a.summary(records, "one", "x") == (2.0, 1.0, 3.0)
    measures = [a.Measure("x", "the figure", "lower")]
    text = a.table(arms, measures, records)
    assert "| the arm two | 6 (5 to 7) |" in text and "the figure ↓" in text
    assert a.plot(arms, measures, records).startswith(b"\x89PNG")


def test_records_of_another_recipe_are_refused(tmp_path):
    arms = _arms([], {"one": 1.0})
    a.run_arms(arms, (0,), tmp_path, recipe={"steps": 3})
    with pytest.raises(RebusError, match=r"steps differ.*another --out"):
        a.run_arms(arms, (0,), tmp_path, recipe={"steps": 4})


def test_a_grid_cell_sees_its_own_patches_only():
    grid, tokens = PLAIN_TOKENIZER.vision.grid, PLAIN_TOKENIZER.qformer.queries
    former = causal.GridFormer(PLAIN_TOKENIZER.qformer, grid)
    x_ISC = torch.randn(1, grid * grid + 1, PLAIN_TOKENIZER.qformer.source_width)
    changed = x_ISC.clone()
    changed[:, 1 + 2 * 5] += 1  # a patch of cell 5
    moved_N = (former(changed) - former(x_ISC)).abs().sum(-1)[0] > 0
    assert moved_N.tolist() == [n == 5 for n in range(tokens)]
    with pytest.raises(RebusError, match="cannot be cut"):
        causal.GridFormer(replace(PLAIN_TOKENIZER.qformer, queries=24), grid)


def test_the_arms_differ_in_who_sees_whom():
    x_ISC = torch.randn(2, 65, 192)
    config, settings = causal.Config(codes=64), {}
    for kind in causal.KINDS:
        arm = causal.CausalArm(kind, config, None, 0, None, print)  # type: ignore[arg-type]
        settings[kind] = arm.tokenizer_config
    assert settings["causal"].qformer.causal and not settings["bidirectional"].qformer.causal
    assert replace(settings["causal"], qformer=settings["bidirectional"].qformer) == settings["bidirectional"]
    assert writer_of.retrieved(x_ISC[:, 0], x_ISC[:, 0]) == 1.0


@pytest.mark.parametrize(
    ("change", "whole"),
    [(None, True), ("short", False), ("long", False), ("word", False), ("text before", False), ("unclosed", False)],
)
def test_what_counts_as_a_whole_image(change, whole):
    text = ByteTokenizer(("<unk>", "<|im_end|>", "<|endoftext|>"))
    grammar = SeedGrammar(text, mini(text.words, 64, 4), "study")
    begin, end, eos = grammar.special.begin_image, grammar.special.end_image, grammar.special.eos
    first = grammar.config.first_code
    codes = [first + k for k in (3, 0, 63, 7)]
    reply = {
        None: [begin, *codes, end, eos],
        "short": [begin, *codes[1:], end, eos],
        "long": [begin, *codes, first, end, eos],
        "word": [begin, *codes[1:], 65, end, eos],
        "text before": [65, begin, *codes, end, eos],
        "unclosed": [begin, *codes, eos],
    }[change]
    writer = writer_of.Writer.__new__(writer_of.Writer)
    writer.grammar = grammar
    assert writer.is_whole(reply) is whole


class _Made(Frozen):
    """A bank of random pictures with three captions."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        captions = [("a red apple", "a blue car", "two trees")[i % 3] for i in range(n)]
        made = Bank(np.zeros((n, 1, 1, 3), np.uint8), captions, ["single"] * n)
        arrays = {
            "tokens": rng.standard_normal((n, 65, 192)).astype(np.float16),
            "embeddings": rng.standard_normal((n, 512)).astype(np.float16),
            "captions": rng.standard_normal((n, 384)).astype(np.float16),
        }
        self.bank = lambda split: made
        self.array = lambda name, split: arrays[name]


def test_the_causal_study_runs_all_of_its_arms(tmp_path):
    config = causal.Config(codes=64, stage1=1, stage2=1, language=1, width=32, depth=1, n=8)
    study = causal.Study(config, tmp_path, tmp_path / "out", lambda line: None)
    study.data = _Made(1100)
    records = study.run((0,))
    assert [record.arm for record in records] == list(causal.KINDS)
    for record in records:
        assert set(record.figures) == {measure.name for measure in causal.MEASURES}
        assert all(np.isfinite(list(record.figures.values())))
        assert record.figures["perplexity"] <= 64
    assert study.run((0,)) == records
    text = study.write(records, tmp_path / "docs")
    assert "causal codes (SEED)" in text and "One seed is no evidence" in text
    for folder in ("out", "docs"):
        assert (tmp_path / folder / "causal.md").read_text() == text
        assert (tmp_path / folder / "causal.png").read_bytes().startswith(b"\x89PNG")


def _causal_records(**means):
    figures = [measure.name for measure in causal.MEASURES]
    return [
        a.Record(arm, seed, {name: means.get(arm, {}).get(name, 0.5) + 0.01 * seed for name in figures}, 1.0)
        for arm in causal.KINDS
        for seed in range(3)
    ]


def test_the_verdict_on_causal_codes_follows_the_records():
    def said(**means):
        found = causal_verdict.findings(_causal_records(**means))
        return [finding.yes for finding in found], causal_verdict.conclusion(found), found

    yes, text, found = said(causal={"nats": 0.4, "valid": 0.9, "likeness": 0.9, "image_error": 0.4})
    assert yes == [True] * 4 and "claim holds here" in text and "They keep more" in text
    assert "better: 0.4100 against 0.5100 of `grid` (seed spread 0.0200)" in found[0].grounds[1]
    yes, text, found = said(causal={"nats": 0.4}, grid={"nats": 0.3, "valid": 0.1})
    assert yes == [False] * 4 and "does not show here" in text and "no more of the picture" in text
    assert found[0].answer == "No: better than bidirectional codes and worse than grid cells."
    assert found[3].answer.endswith("within what the seeds differ.")
    yes, text, _ = said(causal={"valid": 0.9})
    assert (
        yes == [False, True, False, False]
        and "holds in part: against both rivals causal codes are more often whole" in text
    )


def test_the_command_lists_studies_and_names_them_when_one_is_unknown():
    assert "causal" in app.studies()
    with pytest.raises(RebusError, match="no study 'casual'.*causal"):
        app.parse("casual", [])
    run = app.parse("causal", ["--stage1", "7", "--seeds", "1"])
    assert run.options.config.stage1 == 7 and run.options.seeds == 1
