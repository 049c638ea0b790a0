"""The sizes that SEED comes in: the released ones, the embedded mini, and a tiny one for tests."""

from __future__ import annotations

from rebus.mini.vision import MINI_VIT
from rebus.nn.vit import ViTConfig
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.tokenizer import SeedTokenizerConfig

HALF = (0.5, 0.5, 0.5)

PAPER_TOKENIZER = SeedTokenizerConfig()

MINI_TOKENIZER = SeedTokenizerConfig(
    vision=MINI_VIT,
    qformer=QFormerConfig(width=192, depth=4, heads=4, mlp_hidden=768, source_width=192, dropout=0.0),
    codebook_size=1024,
    code_width=16,
    decoder_depth=2,
    decoder_heads=4,
    decoder_hidden=768,
    head_widths=(64, 16),
    image_width=512,
    resize="bicubic",
    mean=HALF,
    std=HALF,
)

TINY_TOKENIZER = SeedTokenizerConfig(
    vision=ViTConfig(image_size=32, patch=16, width=32, depth=1, heads=2, mlp_hidden=64),
    qformer=QFormerConfig(width=32, depth=2, heads=2, mlp_hidden=64, source_width=32, dropout=0.0),
    codebook_size=64,
    code_width=8,
    decoder_depth=1,
    decoder_heads=2,
    decoder_hidden=64,
    head_widths=(16, 4),
    image_width=32,
    mean=HALF,
    std=HALF,
)
