"""SEED (2307.08041) and SEED-LLaMA (2310.01218): an image is 32 words, each depending on those before it.

A causal Q-Former reads an image from left to right into 32 vectors, a codebook makes words of them, a language model
reads and writes these among its own, and an unCLIP diffusion model draws the image embedding that they give back.

Departures from the official code: codes are looked up in float32 always; the Q-Former is causal by a config value and
not when there are 32 queries; padding is respected; noise comes from a generator for each image (`official` brings back
the one noise that every image began as). Of SEED v1 neither all code nor all numbers were published; what is our choice
says so (`variants.py`, `language.py`, `published_decoder.py`). The mini differs from the paper in size, in a draft that
its denoiser is given (`diffusion/draft.py`), and in starting from nothing where the paper starts from BLIP-2
(`stages/stage1_qformer.py`).
"""

from rebus.papers.seed.build import build, official
from rebus.papers.seed.variants import VARIANTS, SeedConfig

__all__ = ["VARIANTS", "SeedConfig", "build", "official"]
