"""rebus study specialists: arms of equal size from one base, measured alike, and a verdict that heeds the seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rebus.apps import studies as app
from rebus.studies import specialists as s
from rebus.studies.arms import Record
from seed_x_mini import INSTRUCT, write_all, write_base


def records(**arms: list[float]) -> list[Record]:
    figures = {arm: [{m.name: value for m in s.MEASURES} for value in values] for arm, values in arms.items()}
    return [Record(arm, seed, one, 1.0) for arm, many in figures.items() for seed, one in enumerate(many)]


def test_a_difference_counts_where_it_exceeds_what_the_seeds_differ() -> None:
    found = s.findings(records(chat=[1, 2, 3], edit=[1, 2, 3], both=[5, 6, 7], both_long=[2, 3, 4]))
    assert len(found) == len(s.MEASURES)
    words, pointed = (next(f for f in found if part in f.question) for part in ("nats per word", "overlap by half"))
    assert words.yes is False and words.answer == (
        "The specialist is better than one for both, as long as a specialist and no different from one for both, as long "
        "as the two together."
    )
    assert "worse than one for both, as long as a specialist" in pointed.answer  # there, more is better
    assert s.conclusion(found).startswith("No:")
    found = s.findings(records(chat=[1, 2, 3], edit=[1, 2, 3], both=[5, 6, 7], both_long=[5, 6, 7]))
    assert [f.yes for f in found] == [True, True, False, True]
    assert "only in chat: nats per word" in s.conclusion(found)
    assert "One seed" in s.conclusion(s.findings(records(chat=[1], edit=[1], both=[2], both_long=[3])))


def test_the_study_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "specialists" in app.studies()
    work = write_all(tmp_path)
    base = write_base(tmp_path)
    config = s.Config(base=str(base), steps=1, batch=1, n=2, points=2, tuning=replace(INSTRUCT))
    out, lines = tmp_path / "out", []
    monkeypatch.setattr(s, "KINDS", {name: s.KINDS[name] for name in ("chat", "edit", "both", "both_long")})
    text = s.study(config, work, out, seeds=(0,), report=lines.append)
    assert "specialist for editing" in text and "as long as the two together" in text
    assert (out / "specialists.md").read_text() == text and "One seed is no evidence" in text
    again: list[str] = []
    assert s.study(config, work, out, seeds=(0,), report=again.append) == text and not again
    parts = s.Study(config, work, out, print)
    assert abs(sum(parts.mix(["chat", "edit"]).values()) - 2) < 1e-9
