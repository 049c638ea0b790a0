"""A few of the moments at which `benchmarks/kill_resume.py` kills a training of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import kill_resume


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_killed_run_becomes_the_unbroken_one(layout: str, tmp_path: Path) -> None:
    found = list(kill_resume.outcome(kill_resume.KINDS, 2, layout, seed=1, place=str(tmp_path)))
    assert found == [("one", 2, ""), ("all", 2, ""), ("write", 2, "")]
