"""What stages 1 and 2 of SEED's tokenizer read when they are trained on real data, beside the pairs themselves: captions
as BERT's words, and the published vision encoder.

Dimension key: I images · L words
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rebus.checkpoint import convert, read_tensors
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.papers.seed.convert import VISION_RULES
from rebus.papers.seed.tokenizer import SeedTokenizer


def bert_words(text: TextTokenizer, captions: Sequence[str], length: int = 32) -> tuple[Tensor, Tensor]:
    """Captions → ids_IL that begin with [CLS] and end with [SEP], and mask_IL, 1 at words and 0 at padding.

    Raises RebusError when the tokenizer is not BERT's.
    """
    absent = [name for name in ("[CLS]", "[SEP]", "[PAD]") if name not in text.specials]
    if absent:
        raise RebusError(
            f"Stage 1 reads captions with BERT's tokenizer, but this one has no {', '.join(absent)}. Name the folder of "
            "bert-base-uncased."
        )
    first, last, pad = (text.specials[name] for name in ("[CLS]", "[SEP]", "[PAD]"))
    rows = [[first, *text.encode(caption)[: length - 2], last] for caption in captions]
    ids_IL = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask_IL = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids_IL, mask_IL


def load_vision(tokenizer: SeedTokenizer, file: Path) -> None:
    """Fills the tokenizer's vision encoder from its published file (`eva_vit_g.pth`). Raises RebusError if it does not
    fit, and for a tokenizer whose codes start from a reading of patches, which that file does not hold."""
    if tokenizer.code_start is not None:
        raise RebusError(
            f"This tokenizer's codes start from a reading of patches (start_per_patch={tokenizer.config.start_per_patch}), "
            f"which only the mini vision encoder has; {file} does not hold it. Set `start_per_patch` to 0."
        )
    ours = {f"visual_encoder.{name}": x for name, x in tokenizer.visual_encoder.state_dict().items()}
    found = convert(read_tensors(file), VISION_RULES, ours).tensors
    tokenizer.visual_encoder.load_state_dict({name.removeprefix("visual_encoder."): found[name] for name in found})
