"""Sizes and choices of SEED's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rebus.images import CLIP_MEAN, CLIP_STD, RGB, Resize
from rebus.mini.sentences import SENTENCE_WIDTH
from rebus.nn.quantize import LossOrder
from rebus.nn.vit import ViTConfig
from rebus.papers.seed.qformer import QFormerConfig


@dataclass(frozen=True)
class SeedTokenizerConfig:
    """Sizes and choices of SEED's tokenizer; the defaults are the released SEED-2 tokenizer."""

    vision: ViTConfig = field(default_factory=ViTConfig)
    """The vision encoder."""
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    """The causal Q-Former; its number of queries is the number of codes of an image."""
    source_positions: Literal["none", "cosine"] = "none"
    """What is added to the vision encoder's tokens before the Q-Former looks at them. `cosine`: waves over the patch
    grid, for a Q-Former that starts from nothing; without them its queries learn only the mean of a picture."""
    vision_eps: float = 1e-5
    """Epsilon of the layer norm between the two."""
    codebook_size: int = 8192
    """Entries of the codebook."""
    codebook: Literal["shared", "per_query", "residual"] = "shared"
    """Whether all queries share the entries (the paper), or each has its own, codebook_size / queries of them. What a
    shared code means depends on its place among the 32; a language model that sees ten thousand pictures instead of a
    hundred million does not learn that. `residual`: each has its own, and adds it to those before it, so that the first
    say the most. With the head `mlp` such codes live in the space of the image embedding (`code_width` is `image_width`)."""
    start_per_patch: int = 0
    """Not 0: the vectors that are looked up start as a reading of the vision encoder's patches, this many numbers of each,
    and the Q-Former adds to them; for a Q-Former that starts from nothing."""
    start_width: int = 0
    """Width of what is read linearly of the patches alone."""
    start_contrast: int = 0
    """Width of a vector of fixed length that is read of patches and class token and follows; numbers of the code beyond
    the two are the Q-Former's alone."""
    meaning_places: int = 0
    """`residual`: how many of the first places choose their codes by what things of one name have in common and others have
    not, so that a language model can know them from the name."""
    meaning_directions: int = 32
    """In how many directions that is looked for."""
    code_width: int = 32
    """Width of an entry."""
    commitment: float = 0.25
    """Weight beta in the quantiser's loss."""
    loss_order: LossOrder = "legacy"
    """Which term beta weighs; SEED's code weighs the codebook's and not, as VQ-VAE does, the commitment."""
    decoder_depth: int = 4
    """Blocks of each of the two decoders from codes."""
    decoder_heads: int = 12
    """Attention heads of the decoders."""
    decoder_hidden: int = 3072
    """Hidden width of the decoders' feed-forwards."""
    head: Literal["mlp", "reverse"] = "mlp"
    """How decoded codes become the image embedding. `mlp`: each is shrunk, all are laid end to end, one linear layer
    (the released weights). `reverse`: learned queries of a bidirectional Q-Former read them (the training script)."""
    head_widths: tuple[int, ...] = (256, 128, 32)
    """`mlp`: the widths that each decoded code is shrunk through."""
    reverse_depth: int = 4
    """`reverse`: layers of that Q-Former. (The published inference class would build 12, which fits no weights.)"""
    reverse_queries: int = 1
    """`reverse`: number of its queries. SEED v1 has 77, one for each text state of Stable Diffusion 1.4."""
    image_width: int = 1024
    """Width of the image embedding (CLIP ViT-H/14: 1,024; text states of SD 1.4 in SEED v1: 768)."""
    contrast_width: int = 0
    """Not 0: the projections of stage 1 to the space of this width in which images meet sentence vectors are kept, for
    retrieval. (The release has them beside BERT, for training only.)"""
    sentence_width: int = SENTENCE_WIDTH
    """Width of the sentence vectors."""
    resize: Resize = "bilinear"
    """How an image is stretched to the encoder's square. The released language models read `bilinear`; the tokenizer
    itself was trained and evaluated with `bicubic`."""
    mean: RGB = CLIP_MEAN
    """Channel means of the pixels."""
    std: RGB = CLIP_STD
    """Channel deviations of the pixels."""
