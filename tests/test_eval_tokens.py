"""Lengths that a tokenizer chooses: what is counted, what a budget buys, and captions of the same pictures from codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests import tiny
from tests.oracle import CONFIG, PICTURES, exam_of, look

from rebus.document import Message
from rebus.evals.curves import draw_curve
from rebus.evals.exam import Exam
from rebus.evals.figures import Curve, Figure
from rebus.evals.nearest import choose
from rebus.evals.report import write_report
from rebus.evals.run import TASKS, evaluate
from rebus.evals.token_count import Chooses, _draws, drawn_counts
from rebus.visual import Codes, Patches

SMALL = replace(CONFIG, n=3, codebook_n=8, seeds=(0,), steps=1)


@pytest.fixture(scope="module")
def exam() -> Exam:
    return Exam(tiny.system("lavit"), PICTURES, look, SMALL)


@pytest.fixture(scope="module")
def results(exam):
    return evaluate(exam, ["tokens"])


def test_lengths_are_counted_as_the_system_chooses_them(exam, results):
    found = {figure.name: figure for figure in results.figures}
    tokenizer = exam.system.tokenizer
    assert isinstance(tokenizer, Chooses) and tokenizer.patches == 16
    images = [PICTURES.image(row, 64) for row in asked_about(exam)]
    lengths = torch.tensor([float(len(token.ids_N)) for token in exam.encode(images)])
    assert found["tokens/mean"].value == pytest.approx(lengths.mean().item())
    assert found["tokens/deviation"].value == pytest.approx(lengths.std(correction=0).item())
    assert found["tokens/percentile_5"].value <= found["tokens/mean"].value <= found["tokens/percentile_95"].value
    for name in ("with_png_bytes", "with_gradient_energy"):
        assert -1 <= found[f"tokens/{name}"].value <= 1
    assert 0 <= found["tokens/between_share"].value <= 1


def asked_about(exam: Exam) -> list[int]:
    return choose(exam.pictures, exam.config.split, exam.config.codebook_n, exam.config.choice)


def test_budgets_are_drawn_and_the_choice_is_as_it_was(exam, results, tmp_path):
    names = {figure.name for figure in results.figures}
    for budget in (8, 16):  # 24 and 40 are more than this model has patches
        assert {f"tokens/at_{budget}/{what}" for what in ("r_at_1", "psnr", "ssim")} <= names
    assert not any("at_24" in name for name in names)
    assert exam.system.tokenizer.selection == "sample" and exam.system.tokenizer.budget is None
    (curve,) = results.curves
    assert curve.at == (8.0, 16.0) and [f.name for f in curve.figures["psnr"]] == [
        "tokens/at_8/psnr",
        "tokens/at_16/psnr",
    ]
    folder = write_report(results, tmp_path / "report")
    assert (folder / "tokens-curve.png").read_bytes().startswith(b"\x89PNG")
    assert "](tokens-curve.png)" in (folder / "report.md").read_text()


def test_draws_of_one_picture_differ_and_a_seed_is_a_seed(exam):
    pictures = [PICTURES.image(row, 64) for row in asked_about(exam)]
    count_ID = drawn_counts(exam, pictures, draws=3)
    assert count_ID.shape == (len(pictures), 3) and (count_ID.var(1) > 0).any()
    assert torch.equal(count_ID, drawn_counts(exam, pictures, draws=3))


def test_variance_between_pictures_is_free_of_what_draws_add():
    found = {figure.name: figure.value for figure in _draws(torch.tensor([[1.0, 3.0], [11.0, 13.0]]))}
    assert found["tokens/draw_variance"] == pytest.approx(2)
    assert found["tokens/between_variance"] == pytest.approx(50 - 2 / 2)
    assert found["tokens/between_share"] == pytest.approx(49 / 51)
    dice = torch.randint(0, 20, (4000, 4), generator=torch.Generator().manual_seed(0)).float()
    assert next(f.value for f in _draws(dice) if f.name == "tokens/between_share") < 0.05


def test_a_tokenizer_that_does_not_choose_yields_nothing(best):
    assert not list(TASKS["tokens"](best)) and not list(TASKS["caption_from_codes"](best))
    assert not list(TASKS["tokens"](exam_of(tiny.system("seed"))))


def test_captions_from_codes_ask_the_same_about_the_same_pictures(exam, monkeypatch):
    asked: list = []

    def generate(documents, **_):
        asked.append(documents)
        return [Message("assistant", ("nothing",)) for _ in documents]

    monkeypatch.setattr(type(exam.system), "generate", lambda self, documents, **options: generate(documents))
    from_vectors = {f.name for f in TASKS["caption"](exam) if isinstance(f, Figure)}
    from_codes = {f.name for f in TASKS["caption_from_codes"](exam) if isinstance(f, Figure)}
    assert from_codes == {name.replace("caption/", "caption_from_codes/") for name in from_vectors}
    one, other = asked
    assert [d.messages[0].text for d in one] == [d.messages[0].text for d in other]
    for plain, coded in zip(one, other, strict=True):
        assert plain.images[0].pixels.tobytes() == coded.images[0].pixels.tobytes()
        assert isinstance(coded.images[0].understood, Codes)
        (read,) = exam.system.tokenizer.encode([coded.images[0]], {"understanding"})
        assert isinstance(read.understood, Codes)  # vectors are not made of it again
        (seen,) = exam.system.tokenizer.encode([plain.images[0]], {"understanding"})
        assert isinstance(seen.understood, Patches)


def test_a_curve_of_one_run_is_drawn(tmp_path):
    figures = [Figure("x/psnr", (float(n), n + 1.0), 3, ceiling=100.0) for n in (1, 2)]
    draw_curve(Curve("x", "tokens", (8.0, 16.0), {"psnr": figures}), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
