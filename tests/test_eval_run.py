"""Text that is kept, and the whole run with its report."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from tests.oracle import CONFIG, PICTURES, Oracle, exam_of, look

from rebus.document import Message
from rebus.errors import RebusError
from rebus.evals.exam import Exam
from rebus.evals.figures import Figure, Sample
from rebus.evals.report import as_markdown, number, write_report
from rebus.evals.run import TASKS, evaluate, values, weights_hash
from rebus.evals.text_kept import base_system, text_kept
from rebus.nn.text_model import TextModel

# ------------------------------------------------------------------------------------------------ text that is kept


def base_of(system):
    """The language model that the tiny system was made from."""
    return TextModel(copy.deepcopy(system.lm.llm.base))


def test_text_kept_compares_a_model_with_what_it_was_made_from():
    system = tiny.fresh("seed")
    base = base_of(system)
    exam = Exam(system, PICTURES, look, replace(CONFIG, n=3), sentences=lambda: sentences, base=lambda: base)
    found = {f.name: f for f in text_kept(exam) if isinstance(f, Figure)}
    assert found["text_kept/similarity"].value == pytest.approx(1)
    # the same but for what its new words take of the probability
    assert found["text_kept/perplexity"].value == pytest.approx(found["text_kept/perplexity"].ceiling, rel=0.5)
    with torch.no_grad():
        system.lm.llm.base.model.norm.weight.mul_(0)
    spoiled = {f.name: f for f in text_kept(exam) if isinstance(f, Figure)}
    assert spoiled["text_kept/similarity"].value < 0.9
    assert spoiled["text_kept/perplexity"].value == pytest.approx(system.grammar.vocabulary, rel=1e-3)
    assert spoiled["text_kept/perplexity"].ceiling == pytest.approx(found["text_kept/perplexity"].ceiling)
    assert len([s for s in text_kept(exam) if isinstance(s, Sample)]) == 3


def test_another_base_is_refused():
    system = tiny.system("seed")
    with pytest.raises(RebusError, match="made from another"):
        base_system(system, tiny.text_model("llama"))
    assert not list(text_kept(exam_of(system)))


def sentences(texts):
    return F.normalize(torch.tensor([[float(t.count(chr(c))) + 0.01 for c in range(32, 127)] for t in texts]), dim=-1)


# ------------------------------------------------------------------------------------------------ the whole run


def test_report_is_written_whole(best, tmp_path):
    results = evaluate(best, ["caption", "draw", "retrieval"], {"command": "rebus eval oracle"})
    assert list(results.left_out) == ["retrieval"]
    folder = write_report(results, tmp_path / "deep" / "report")
    assert sorted(p.name for p in folder.iterdir()) == ["caption.png", "draw.png", "report.json", "report.md"]
    found = json.loads((folder / "report.json").read_text())
    assert found["recipe"]["seeds"] == [0, 1] and found["recipe"]["system"] == "oracle"
    assert {f["name"] for f in found["figures"]} >= {"caption/holds_label", "draw/r_at_1"}
    assert len([s for s in found["samples"] if s["task"] == "draw"]) == CONFIG.samples
    text = (folder / "report.md").read_text()
    assert "| caption/holds_label | 1.000 |" in text and "retrieval" in text and "![draw](draw.png)" in text
    write_report(results, folder)  # a report may be replaced
    assert sorted(p.name for p in folder.parent.iterdir()) == ["report"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RebusError, match="no report"):
        write_report(results, tmp_path / "mine")


def test_nothing_is_left_of_a_report_that_fails(best, tmp_path, monkeypatch):
    results = evaluate(best, ["caption"])
    folder = write_report(results, tmp_path / "report")
    monkeypatch.setattr("rebus.evals.report.as_markdown", lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(replace(results, figures=[]), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert json.loads((folder / "report.json").read_text())["figures"]


def test_a_task_that_cannot_be_given_is_left_out_with_its_reason():
    system = Oracle({})
    system.detokenizer = None
    results = evaluate(exam_of(system), ["reconstruct"])
    assert "no detokenizer" in results.left_out["reconstruct"] and not results.figures
    with pytest.raises(RebusError, match="no task 'sing'"):
        evaluate(exam_of(system), ["sing"])


def test_values_are_what_a_training_run_logs(best):
    logged = dict(values(TASKS["caption"], best))
    assert logged["caption/holds_label"] == 1 and set(logged) == {
        "caption/holds_label",
        "caption/holds_keyword",
        "caption/cider",
    }


def test_weights_hash_depends_on_every_number():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.weight[1, 2] += 1e-6
    assert weights_hash(one) != weights_hash(other)


def test_markdown_says_what_is_not_known():
    assert number(None) == number(float("nan")) == "–"
    assert [number(v) for v in (0.12345, 12.345, 12345.6)] == ["0.123", "12.3", "12,346"]
    results = evaluate(exam_of(Oracle({})), ["codebook"])
    assert "one run" in as_markdown(results)


NOT_SEED = {"ground", "small", "edits", "edits_in_a_row"}
"""Tasks for systems with boxes, views, and sources of edits."""


@pytest.mark.parametrize(("paper", "without"), [("seed", NOT_SEED), ("seed_x", {"codebook"})])
def test_a_tiny_system_takes_the_whole_exam(tmp_path, paper, without):
    exam = Exam(
        tiny.system(paper), PICTURES, look, replace(CONFIG, n=2, seeds=(0,), max_new_tokens=8, steps=1, codebook_n=4)
    )
    results = evaluate(exam)
    assert without <= set(results.left_out) <= {"retrieval", "text_kept", "tokens", "caption_from_codes"} | without, (
        results.left_out
    )
    named = {f.name.partition("/")[0] for f in results.figures}
    assert named >= {"reconstruct", "draw", "scenes", "interleaved", "story"}
    assert paper == "seed" or named >= {"ground", "small", "edit", "edits_in_a_row"}
    assert next(f for f in results.figures if f.name == "interleaved/valid").value == 1
    write_report(results, tmp_path / "report")
    assert isinstance(results.recipe["weights"]["lm"]["sha256"], str)


def test_messages_without_pictures_are_blank():
    from rebus.evals.draw import BLANK, picture

    assert picture(Message("assistant", ("no",))) is BLANK
